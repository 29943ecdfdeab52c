# SPDX-License-Identifier: Apache-2.0
"""The interface of trainers, and the table of all trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.world import World
from oumi.core.plan.parts import Plan
from oumi.core.registry import Registry
from oumi.core.run import Progress
from oumi.core.trainers.resume import ResumePoint


class Trainer(Protocol):
    """Carries out a plan."""

    run: Progress

    @classmethod
    def build(cls, plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> Trainer:
        """Loads the model, and prepares the first step."""

    def train(self) -> None:
        """Runs every step of the plan; raises PreemptedError if the run was stopped before the last one."""

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer as Hugging Face files."""


TRAINERS: Registry[type[Trainer]] = Registry(
    "trainer",
    {
        "oumi": "oumi.core.trainers.native:NativeTrainer",
        **dict.fromkeys(
            ("trl_sft", "trl_dpo", "trl_kto", "trl_orpo", "trl_cpo", "hf"), "oumi.core.trainers.trl:TrlTrainer"
        ),
    },
)
