# SPDX-License-Identifier: Apache-2.0
"""What a run writes is told before it starts, and it does not start when there is no room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oumi.core.errors import OutputError
from oumi.core.inspect import gather_facts
from oumi.core.plan.disk import plan_disk, size_of_files, with_saved_size
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.parts import CheckpointPlan, OptimizerPlan, StepsPlan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.resources import SavedSize
from oumi.core.plan.shapes import ModelShape
from oumi.core.plan.sharding import ShardingPlan
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import save_tiny_model

MB = 10**6
ADAM = OptimizerPlan("adamw_torch", 1e-3, 0.0, (0.9, 0.99), 1e-8, 0.0, None)


def checkpoints(**changes: Any) -> CheckpointPlan:
    return replace(CheckpointPlan(10, False, None, True, None, False), **changes)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("saving", "num_rows", "standing"),
    [
        (checkpoints(), 100, 10),
        (checkpoints(keep=3), 100, 4),
        (checkpoints(keep=30), 100, 10),
        (checkpoints(every_steps=None), 100, 0),
        (checkpoints(every_steps=None, every_epoch=True), 100, 1),
        (checkpoints(keep=2), None, 3),
        (checkpoints(), None, 1),
    ],
)
def test_as_many_checkpoints_as_stand_together(saving: CheckpointPlan, num_rows: int | None, standing: int) -> None:
    disk = plan_disk(StepsPlan(1, 1, 1, 1, None, num_rows), saving, ADAM, SavedSize(MB, MB), 1)
    assert disk.num_checkpoints == standing
    assert disk.total_bytes == standing * 3 * MB + MB


@pytest.mark.parametrize(
    ("optimizer", "momentum", "state"), [("adamw_torch", 0.0, 2), ("sgd", 0.0, 0), ("sgd", 0.9, 1), ("adafactor", 0, 0)]
)
def test_an_optimizer_is_saved_with_its_state(optimizer: str, momentum: float, state: int) -> None:
    plan = replace(ADAM, name=optimizer, momentum=momentum)
    disk = plan_disk(StepsPlan(1, 1, 1, 1, None, 20), checkpoints(), plan, SavedSize(4 * MB, MB), 1)
    assert disk.checkpoint_bytes == 4 * MB + state * MB


@pytest.mark.parametrize("lora", [{}, {"lora_target_modules": ["q_proj", "down_proj"]}])
def test_the_prediction_is_what_a_checkpoint_takes(tmp_path: Path, lora: dict[str, Any]) -> None:
    save_tiny_model(tmp_path / "model", hidden_size=256, intermediate_size=1024)
    config = tiny_config(tmp_path, save_steps=2, max_steps=2, use_peft=bool(lora))
    config.peft.lora_r = 32
    for key, value in lora.items():
        setattr(config.peft, key, value)
    predicted = make_plan(config, gather_facts(config)).disk
    train(config)
    assert predicted.checkpoint_bytes == pytest.approx(bytes_below(tmp_path / "out" / "checkpoint-2"), rel=0.05)
    final = next((tmp_path / "out").glob("*model.safetensors"))
    assert predicted.final_bytes == pytest.approx(final.stat().st_size, rel=0.05)


@pytest.mark.parametrize(
    ("saving", "saves_whole", "temporary"),
    [
        (checkpoints(), True, 4 * MB),
        (checkpoints(), False, 4 * MB),
        (checkpoints(final_model=False), True, 4 * MB),
        (checkpoints(final_model=False), False, 0),
        (checkpoints(final_model=False, every_steps=None), True, 0),
    ],
)
def test_a_divided_model_is_whole_in_a_file_while_it_is_saved(
    saving: CheckpointPlan, saves_whole: bool, temporary: int
) -> None:
    steps, saved = StepsPlan(1, 1, 64, 1, None, 20 * 64), SavedSize(4 * MB, 4 * MB)
    whole = plan_disk(steps, saving, ADAM, saved, 1)
    sharding = ShardingPlan(8, 8, True, (), None, False, None, False, True, saves_whole)
    disk = plan_disk(steps, saving, ADAM, saved, 1, sharding)
    assert disk.temporary_bytes == temporary
    assert disk.checkpoint_bytes == whole.checkpoint_bytes, (
        "the ranks of one copy write the state, those of others none"
    )
    assert disk.total_bytes == (whole.total_bytes or 0) + temporary


def test_the_shape_shows_what_is_saved_where_there_are_no_files() -> None:
    shape = ModelShape("llama", 2, 64, 4, 2, 16, 128, 260, True)
    saved = size_of_files(ModelFacts(shape=shape), "bfloat16", None)
    assert saved is not None
    assert saved.num_bytes == 2 * shape.num_parameters


def test_nothing_is_predicted_of_a_model_that_is_not_here(tmp_path: Path) -> None:
    assert size_of_files(ModelFacts(), "float32", None) is None


def test_a_run_without_room_is_refused_with_what_would_help(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, save_steps=1)
    plan = make_plan(config, replace(gather_facts(config), free_bytes=MB))
    assert any(note.startswith("disk: not enough") for note in plan.notes)
    with pytest.raises(OutputError, match=r"writes \d+ MB and .* has 1 MB free.*save_total_limit") as refused:
        with_saved_size(plan, SavedSize(MB, MB))
    assert refused.value.exit_code == 73
