# SPDX-License-Identifier: Apache-2.0
"""The table of methods: what each learns from, and where its loss is. Imports no torch.

A new method is a row here, and a file in `core/methods` where our own trainer carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oumi.core.configs import TrainerType, TrainingParams
from oumi.core.configs.base import Params
from oumi.core.configs.methods import DpoSettings, NoSettings
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Completion, Judged, Preference, Prompt, Text


@dataclass(frozen=True)
class MethodSpec:
    """What a method learns from, as far as a plan and the data must know it."""

    rows: frozenset[type]
    """What a row may stand for."""
    term: str
    """What its loss is a mean of: `token`, `pair`, `completion`, `rollout`."""
    train_on: str | None = None
    """Which tokens of a row are trained; None leaves it to the config."""
    documents_per_row: int = 1
    """Documents that a row has at least: a pair has two, which no micro-batch parts."""
    has_reference: bool = False
    """Compares with the model as it was before the training."""
    settings: type[Params] = NoSettings
    """Its arguments in `training.trainer_kwargs`, where our own trainer carries it out."""
    loss: str | None = None
    """Where its loss is, None where our own trainer does not have it."""

    @property
    def is_per_token(self) -> bool:
        """Returns True if each token is learned alone; else the parts of a row are of no use without each other."""
        return self.term == "token"


METHODS: Mapping[str, MethodSpec] = {
    "next_token": MethodSpec(
        rows=frozenset({Conversation, Completion, Text}),
        term="token",
        loss="oumi.core.methods.next_token:NextToken",
    ),
    "dpo": MethodSpec(
        rows=frozenset({Preference}),
        term="pair",
        train_on="final_assistant_turn",
        documents_per_row=2,
        has_reference=True,
        settings=DpoSettings,
        loss="oumi.core.methods.preference:DirectPreference",
    ),
    "kto": MethodSpec(rows=frozenset({Judged}), term="completion", train_on="final_assistant_turn"),
    "grpo": MethodSpec(rows=frozenset({Prompt}), term="rollout", train_on="nothing"),
    "distillation": MethodSpec(rows=frozenset({Conversation, Completion, Text}), term="token"),
}


def method_of(training: TrainingParams) -> str:
    """Returns the name of the method that a config asks for."""
    return training.method or training.trainer_type.spec.method


def methods_of(trainer: TrainerType) -> list[str]:
    """Returns every method that a trainer can carry out."""
    native = [name for name, spec in METHODS.items() if spec.loss is not None]
    return native if trainer.spec.is_native else [trainer.spec.method]
