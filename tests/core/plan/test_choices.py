# SPDX-License-Identifier: Apache-2.0
"""The names of other libraries that are known without importing them."""

from __future__ import annotations

import pytest

from oumi.core.configs import TrainerType
from oumi.core.plan.choices import SCHEDULES, TRANSFORMERS_OPTIMIZERS, TRANSFORMERS_SCHEDULES, wrong_optimizer


def test_the_optimizers_of_transformers_are_those_of_the_installed_version() -> None:
    from transformers.training_args import OptimizerNames

    assert sorted(TRANSFORMERS_OPTIMIZERS) == sorted(name.value for name in OptimizerNames)


def test_the_schedules_of_transformers_are_those_of_the_installed_version() -> None:
    from transformers.trainer_utils import SchedulerType

    assert sorted([*SCHEDULES, *TRANSFORMERS_SCHEDULES]) == sorted(name.value for name in SchedulerType)


@pytest.mark.parametrize(
    ("name", "trainer", "words"),
    [
        ("adamw", "OUMI", ""),
        ("adamw", "TRL_SFT", ""),
        ("lomo", "TRL_DPO", ""),
        ("lomo", "OUMI", "OUMI has no optimizer 'lomo'"),
        ("adam", "HF", "HF has no optimizer 'adam'"),
        ("adamw_trch", "OUMI", "unknown optimizer 'adamw_trch', did you mean 'adamw_torch'?"),
        ("adamw_trch", "TRL_DPO", "unknown optimizer 'adamw_trch', did you mean 'adamw_torch'?"),
        ("zzz", "OUMI", "unknown optimizer 'zzz'; OUMI has adam, adamw,"),
    ],
)
def test_an_optimizer_is_reported_by_its_trainer(name: str, trainer: str, words: str) -> None:
    message = wrong_optimizer(name, TrainerType[trainer])
    assert bool(message) == bool(words)
    assert words in message
