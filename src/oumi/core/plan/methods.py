# SPDX-License-Identifier: Apache-2.0
"""The table of training methods: their rows, their loss and its arguments. Imports no torch.

A new method is an entry here, and a file in `core/methods` if trainer OUMI supports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oumi.core.configs import TrainerType, TrainingParams
from oumi.core.configs.base import Params
from oumi.core.configs.methods import CpoSettings, DpoSettings, KtoSettings, NoSettings, OrpoSettings, SimpoSettings
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Completion, Judged, Preference, Prompt, Text


@dataclass(frozen=True)
class MethodSpec:
    """The properties of a method that the plan and the data depend on."""

    rows: frozenset[type]
    """Types of rows that it can train on."""
    term: str
    """What its loss averages over: `token`, `pair`, `completion` or `rollout`."""
    train_on: str | None = None
    """Which tokens of a row are trained; None leaves it to the config."""
    documents_per_row: int = 1
    """Documents of a row; a pair has two, which stay in the same micro-batch."""
    has_reference: bool = False
    """Needs the log-probabilities of the model before training."""
    settings: type[Params] = NoSettings
    """Its arguments in `training.trainer_kwargs` of trainer OUMI."""
    keys: tuple[str, ...] = ()
    """Keys of `training` that only its loss reads."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What its loss reads of a row beside tokens, with the values of rows that are made up to try their size."""
    metrics: tuple[str, ...] = ()
    """What its loss reports beside, by the names of TRL."""
    loss: str | None = None
    """`module:attribute` of its loss, None if trainer OUMI does not support it."""

    @property
    def is_per_token(self) -> bool:
        """Returns True if each token has a loss of its own, so that rows may be split or packed."""
        return self.term == "token"


_REWARDS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy",
)  # fmt: skip


def _of_pairs(
    settings: type[Params], loss: str, has_reference: bool = False, metrics: tuple[str, ...] = ()
) -> MethodSpec:
    return MethodSpec(
        rows=frozenset({Preference}),
        term="pair",
        train_on="final_assistant_turn",
        documents_per_row=2,
        has_reference=has_reference,
        settings=settings,
        metrics=(*_REWARDS, *metrics),
        loss=loss,
    )


# A loss is named, not imported, since its module imports torch.
METHODS: Mapping[str, MethodSpec] = {
    "next_token": MethodSpec(
        rows=frozenset({Conversation, Completion, Text}),
        term="token",
        keys=("label_smoothing", "z_loss"),
        loss="oumi.core.methods.next_token:NextToken",
    ),
    "dpo": _of_pairs(DpoSettings, "oumi.core.methods.preference:DirectPreference", has_reference=True),
    "kto": MethodSpec(
        rows=frozenset({Judged, Preference}),  # a preference becomes two judged answers
        term="completion",
        train_on="final_assistant_turn",
        has_reference=True,
        settings=KtoSettings,
        columns={"label": True},
        metrics=(*_REWARDS, "kl"),
        loss="oumi.core.methods.judged:JudgedAnswers",
    ),
    "orpo": _of_pairs(
        OrpoSettings,
        "oumi.core.methods.reference_free:OddsRatio",
        metrics=("nll_loss", "log_odds_ratio", "log_odds_chosen"),
    ),
    "cpo": _of_pairs(CpoSettings, "oumi.core.methods.reference_free:ContrastivePreference", metrics=("nll_loss",)),
    "simpo": _of_pairs(SimpoSettings, "oumi.core.methods.reference_free:SimplePreference"),
    # Methods that trainer OUMI does not support.
    "grpo": MethodSpec(rows=frozenset({Prompt}), term="rollout", train_on="nothing"),
    "distillation": MethodSpec(rows=frozenset({Conversation, Completion, Text}), term="token"),
}


def method_of(training: TrainingParams) -> str:
    """Returns the name of the method: that of the config, else the default of its trainer."""
    return training.trainer_type.spec.method if training.method is None else training.method


def methods_of(trainer: TrainerType) -> list[str]:
    """Returns the methods that a trainer supports."""
    native = [name for name, spec in METHODS.items() if spec.loss is not None]
    return native if trainer.spec.is_native else [trainer.spec.method]


def is_of_other_method(key: str, method: str) -> bool:
    """Returns True if only the loss of another method reads a key of `training`."""
    return any(key in spec.keys for name, spec in METHODS.items() if name != method)
