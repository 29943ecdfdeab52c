# SPDX-License-Identifier: Apache-2.0
"""Every recipe that ships is short, loads, and can be carried out."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from oumi.core.recipes import Recipe, configs_dir, list_recipes
from tests.fork_server import run_python

RECIPES = {recipe.path.relative_to(configs_dir()).as_posix(): recipe for recipe in list_recipes()}
TRAINING = [name for name, recipe in RECIPES.items() if recipe.kind == "training"]
JOBS = [name for name, recipe in RECIPES.items() if recipe.kind == "job"]
has_configs = find_spec("oumi.core.configs") is not None
needs_configs = pytest.mark.skipif(not has_configs, reason="the config models are not built yet")
needs_command = pytest.mark.skipif(find_spec("oumi.cli.main") is None, reason="the command line is not built yet")


@pytest.fixture(params=RECIPES)
def recipe(request) -> Recipe:
    return RECIPES[request.param]


def test_there_are_recipes_of_both_kinds():
    assert len(TRAINING) >= 6
    assert len(JOBS) >= 7


def test_a_recipe_has_at_most_40_lines_and_says_what_it_is(recipe):
    lines = recipe.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert re.match(r"# [A-Z].+\.$", lines[1]), "the second line is a sentence on what the recipe does"
    assert lines[2].startswith("#   oumi "), "the third line is the command that uses it"


def test_an_editor_finds_the_schema_of_a_recipe(recipe):
    first = recipe.path.read_text(encoding="utf-8").splitlines()[0]
    link = first.removeprefix("# yaml-language-server: $schema=")
    assert (recipe.path.parent / link).resolve() == (configs_dir() / "schema" / f"{recipe.kind}.json").resolve()


@pytest.mark.parametrize("name", JOBS)
def test_a_job_trains_with_a_recipe_that_ships(name):
    used = re.findall(r"-c (\S+)", yaml.safe_load(RECIPES[name].path.read_text())["run"])
    assert [path.removeprefix("configs/") in RECIPES for path in used] == [True]
    assert Path(used[0]).parent == Path("configs", name).parent


def test_no_two_recipes_write_to_the_same_directory():
    outputs = [yaml.safe_load(RECIPES[name].path.read_text())["training"]["output_dir"] for name in TRAINING]
    assert len(outputs) == len(set(outputs))


@needs_configs
@pytest.mark.parametrize("name", TRAINING)
def test_a_training_recipe_sets_only_what_differs_from_the_defaults(name):
    from oumi.core.configs import TrainingConfig
    from oumi.core.configs.loading import leaves

    recipe = TrainingConfig.from_yaml(str(RECIPES[name].path))
    values, defaults = leaves(recipe), leaves(TrainingConfig())
    repeated = {key for key in recipe.keys_set() if key in defaults and values[key] == defaults[key]}
    assert repeated <= {"training.learning_rate"}, "a reader looks for the learning rate, and for no other default"


@needs_configs
@pytest.mark.parametrize("name", TRAINING)
def test_a_training_recipe_is_checked_and_planned(name, tmp_path):
    from oumi.core.configs import TrainingConfig
    from oumi.core.plan.facts import Facts
    from oumi.core.plan.plan import make_plan

    config = TrainingConfig.from_yaml(str(RECIPES[name].path))
    config.training.output_dir = str(tmp_path / "out")
    config.finalize_and_validate()
    facts = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, num_rows=51760)
    plan = make_plan(config, facts, world_size=4)
    assert plan.num_steps > 0


@needs_configs
@pytest.mark.parametrize("name", JOBS)
def test_a_job_recipe_is_checked(name):
    from oumi.core.configs import JobConfig

    JobConfig.from_yaml(str(RECIPES[name].path)).finalize_and_validate()


@needs_command
@pytest.mark.parametrize("kind", ["training", "job"])
def test_the_schema_that_ships_is_current(kind):
    fresh = run_python("-m", "oumi", "config", "schema", "--kind", kind).stdout
    assert json.loads((configs_dir() / "schema" / f"{kind}.json").read_text()) == json.loads(fresh), "run `make schema`"
