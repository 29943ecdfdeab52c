# SPDX-License-Identifier: Apache-2.0
"""A schedule means the same under every trainer, and is refused before anything is loaded where it cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.plan.choices import SCHEDULES
from oumi.core.plan.refusals import refusals
from oumi.core.train import train
from tests.runs import tiny_config

STEPS, RATE = 10, 1e-3
ARGUMENTS: dict[str, dict[str, Any]] = {"warmup_stable_decay": {"num_decay_steps": 3}}
WARMUPS: list[dict[str, Any]] = [{}, {"warmup_steps": 4}, {"warmup_ratio": 0.15}, {"warmup_ratio": 1.0}]


def rates(folder: Path, trainer: str, **training: Any) -> list[float]:
    """Returns the learning rate of each step of a run."""
    out = folder / trainer
    shape = {"trainer_type": trainer, "max_steps": STEPS, "logging_steps": 1, "learning_rate": RATE, **training}
    train(tiny_config(folder, num_rows=8, output_dir=str(out), **shape))
    return [json.loads(line)["learning_rate"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.sample(3)
@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_the_same_under_every_trainer(
    tmp_path: Path, name: str, warmup: dict[str, Any], trainer: str
) -> None:
    shape = {"lr_scheduler_type": name, "lr_scheduler_kwargs": ARGUMENTS.get(name, {}), **warmup}
    ours, theirs = (rates(tmp_path, kind, **shape) for kind in ("OUMI", trainer))
    assert len(ours) == STEPS
    assert ours == theirs


def test_the_rates_of_schedules_are_as_computed_by_hand(tmp_path: Path) -> None:
    linear = rates(tmp_path / "1", "OUMI", lr_scheduler_type="linear", warmup_steps=4)
    assert linear == pytest.approx([RATE * min(step / 4, (STEPS - step) / 6) for step in range(STEPS)])
    cosine = rates(tmp_path / "2", "OUMI", lr_scheduler_type="cosine")
    assert cosine == pytest.approx([RATE * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)])
    constant = rates(tmp_path / "3", "OUMI", lr_scheduler_type="constant", warmup_ratio=0.2)
    assert constant == pytest.approx([0, RATE / 2, *[RATE] * 8])


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT", "HF"])
@pytest.mark.parametrize(
    ("training", "key", "message"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs", "needs num_decay_steps"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": "abc"}}, "lr_scheduler_kwargs.lr_end",
         "got 'abc', must be a number >= 0"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 5e-8}, "lr_scheduler_kwargs", "lr_end, 1e-07, must be"),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1}},
         "lr_scheduler_kwargs", "leave one of them out"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}}, "lr_scheduler_kwargs.num_cycle",
         "did you mean 'num_cycles'?"),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs":
          {"num_decay_steps": 3, "decay_type": "exp"}}, "lr_scheduler_kwargs.decay_type", "must be one of linear"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(trainer: str, training: dict[str, Any], key: str, message: str) -> None:
    config = TrainingConfig.model_validate(
        {
            "model": {"model_name": "m"},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {"trainer_type": trainer, **training},
        }
    )
    (problem,) = refusals(config)
    assert problem.key == f"training.{key}"
    assert message in problem.message
