# SPDX-License-Identifier: Apache-2.0
"""Names of configs and packaged models."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.errors import ConfigError
from oumi.core.recipes import (
    SHORT_NAMES,
    configs_dir,
    is_packaged,
    list_recipes,
    resolve_asset,
    resolve_config,
)

QUICKSTART = "configs/recipes/smollm/sft/135m/quickstart_train.yaml"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_that_exists_is_returned_unchanged(elsewhere):
    (elsewhere / "my.yaml").write_text("model: {}\n")
    assert resolve_config("my.yaml") == Path("my.yaml")


@pytest.mark.parametrize("name", [QUICKSTART, f"oumi://{QUICKSTART}", f"OUMI://{QUICKSTART}", "smollm-135m-quickstart"])
def test_a_recipe_is_resolved_from_any_directory(elsewhere, name):
    assert resolve_config(name).samefile(configs_dir().parent / QUICKSTART)


def test_a_local_file_wins_over_the_recipe_of_the_package(elsewhere):
    own = elsewhere / QUICKSTART
    own.parent.mkdir(parents=True)
    own.write_text("model: {}\n")
    assert resolve_config(QUICKSTART).samefile(own)
    assert not resolve_config(f"oumi://{QUICKSTART}").samefile(own)


@pytest.mark.parametrize("kind", sorted(SHORT_NAMES))
def test_every_short_name_is_that_of_a_recipe(kind):
    assert {name: resolve_config(name, kind).is_file() for name in SHORT_NAMES[kind]} == dict.fromkeys(
        SHORT_NAMES[kind], True
    )


def test_every_recipe_has_a_unique_short_name():
    without = [recipe.name for recipe in list_recipes() if recipe.name.startswith("configs/")]
    assert without == []
    named = [(recipe.kind, recipe.name) for recipe in list_recipes()]
    assert len(named) == len(set(named)) == sum(len(names) for names in SHORT_NAMES.values())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "smolm-135m",
            "training",
            "neither a file nor the short name of a training recipe, did you mean 'smollm-135m'?",
        ),
        ("llama3.2-3b-lra", "job", "short name of a job recipe, did you mean 'llama3.2-3b-lora'?"),
        ("zzz", "training", "known: llama3.2-1b, "),
        (QUICKSTART.replace("quickstart_", "quikstart_"), "training", f"did you mean '{QUICKSTART}'?"),
        ("oumi://configs/recipes/smollm/train.yaml", "training", "nor in this version's recipes"),
        ("oumi://configs/../pyproject.toml", "training", "nor in this version's recipes"),
        ("configs/../../etc/passwd", "training", "nor in this version's recipes"),
        ("here/none.yaml", "training", "here/none.yaml: no such file (there is no directory here)"),
        ("trian.yaml", "training", "trian.yaml: no such file, did you mean 'train.yaml'?"),
        (".", "training", ". is a directory; it contains train.yaml"),
        ("", "training", "is a directory; it contains train.yaml"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_name(elsewhere, name, kind, message):
    (elsewhere / "train.yaml").write_text("model: {}\n")
    with pytest.raises(ConfigError) as error:
        resolve_config(name, kind)
    assert message in str(error.value)


def test_names_of_the_hub_and_paths_are_not_packaged():
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "./model", "oumi/tiny"):
        assert not is_packaged(name)
        assert resolve_asset(name) == name


def test_a_packaged_model_is_a_directory_with_a_config():
    assert (Path(resolve_asset("oumi://tiny")) / "config.json").is_file()


def test_an_unknown_packaged_model_is_refused():
    with pytest.raises(ConfigError, match=r"no model 'oumi://tyni' in this package, did you mean 'oumi://tiny'\?"):
        resolve_asset("oumi://tyni")
