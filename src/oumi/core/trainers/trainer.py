# SPDX-License-Identifier: Apache-2.0
"""What every trainer is, and the table of those there are."""

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
        """Loads the model, and makes everything ready for the first step."""

    def train(self) -> None:
        """Takes every step of the plan; raises PreemptedError if it was asked to stop before."""

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer as Hugging Face files."""


TRAINERS: Registry[type[Trainer]] = Registry(
    "trainer",
    {
        "oumi": "oumi.core.trainers.native:NativeTrainer",
        "trl_sft": "oumi.core.trainers.trl:TrlTrainer",
        "hf": "oumi.core.trainers.trl:TrlTrainer",
    },
)
