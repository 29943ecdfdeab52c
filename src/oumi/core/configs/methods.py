# SPDX-License-Identifier: Apache-2.0
"""Arguments of the methods of our own trainer, which `training.trainer_kwargs` holds by the names that TRL has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from oumi.core.configs.base import Complaint, Params
from oumi.core.errors import did_you_mean

_OF_BATCH = "it is no sum over pairs: it {}, so it would depend on how a step is cut into micro-batches"
_NO_SUMS = {
    "aot": _OF_BATCH.format("sorts the log-ratios of a batch"),
    "aot_unpaired": _OF_BATCH.format("sorts the log-ratios of a batch"),
    "bco": _OF_BATCH.format("shifts rewards by a running mean"),
}
"""Losses that are refused, each with the reason."""

PAIR_LOSSES = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
)
"""Losses of `dpo`, each a sum over pairs or over tokens."""

_WITH_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "discopop"}
_SMOOTHED = {"sigmoid", "sigmoid_norm", "robust", "exo_pair"}

Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class NoSettings(Params):
    """Of a method without arguments of its own."""


class AnswerSettings(Params):
    """Arguments that every method with prompts and answers has."""

    max_prompt_length: PositiveInt | None = None
    """Longest prompt in tokens; of a longer one, the end is kept. Null sets no limit."""

    max_completion_length: PositiveInt | None = None
    """Longest answer in tokens; of a longer one, the beginning is kept. Null sets no limit."""


class DpoSettings(AnswerSettings):
    """Arguments of direct preference optimization and the losses that followed it."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the reference: the larger, the closer it stays."""

    loss_type: str | list[str] = "sigmoid"
    """One loss or a list of losses, whose weighted sum is minimized. `sigmoid` is that of the paper; `sft` is the
    cross-entropy of the chosen answers, a mean over their tokens."""

    loss_weights: list[float] | None = None
    """A weight for each loss of `loss_type`; null is 1 for each."""

    label_smoothing: Smoothing = 0.0
    """Share of the pairs whose answers may be swapped, for `sigmoid` and `sigmoid_norm` (cDPO), `robust` and
    `exo_pair`."""

    reference_free: bool = False
    """Compare with no reference: the log-probabilities of the model alone are its rewards."""

    precompute_ref_log_probs: bool = False
    """Compute the log-probabilities of the reference for all rows before the first step, and keep them for later runs
    with the same model and rows. Then no copy of the model is held, and no step computes the reference."""

    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Divergence from the reference by which `sigmoid`, `sigmoid_norm`, `hinge`, `ipo`, `robust`, `exo_pair` and
    `discopop` score an answer."""

    f_alpha_divergence_coef: float = 0.5
    """Alpha of `f_divergence_type: alpha_divergence`."""

    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the tokens of an answer beyond the length of the shorter answer of its pair; null is 1."""

    rpo_alpha: NonNegativeFloat | None = None
    """Weight of `sft` in addition to `loss_type`: an older spelling of a list with `loss_weights`."""

    discopop_tau: PositiveFloat = 0.05
    """Temperature of `discopop`."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Returns the weight of each loss."""
        weights = dict(zip(self._losses, self.loss_weights or [1.0] * len(self._losses), strict=True))
        return weights if self.rpo_alpha is None else {**weights, "sft": self.rpo_alpha}

    def complaints(self) -> Iterator[Complaint]:
        """Yields unknown losses, those that are no sum over pairs, and arguments that no loss reads."""
        names = self._losses
        for name in names:
            if name in _NO_SUMS:
                yield "loss_type", f"'{name}' is not supported: {_NO_SUMS[name]}"
            elif name not in PAIR_LOSSES:
                hint = did_you_mean(name, PAIR_LOSSES) or f"; must be of {', '.join(PAIR_LOSSES)}"
                yield "loss_type", f"unknown loss '{name}'{hint}"
        if not names or len(set(names)) < len(names):
            yield "loss_type", "must be one loss, or a list of different ones"
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            yield "loss_weights", f"has {len(self.loss_weights)} values, loss_type names {len(names)}"
        if self.rpo_alpha is not None and "sft" in names:
            yield "rpo_alpha", "adds the loss sft, which loss_type names already; set its weight in loss_weights"
        if "exo_pair" in names and not self.label_smoothing:
            yield "label_smoothing", "loss_type exo_pair needs a value above 0, such as 1e-3"
        if self.reference_free and self.precompute_ref_log_probs:
            yield "precompute_ref_log_probs", "reference_free compares with no reference"
        yield from _not_read(self, "label_smoothing", names, _SMOOTHED)
        yield from _not_read(self, "discopop_tau", names, ("discopop",))
        yield from _not_read(self, "f_divergence_type", names, _WITH_DIVERGENCE)
        if self.f_divergence_type != "alpha_divergence" and "f_alpha_divergence_coef" in self.model_fields_set:
            yield "f_alpha_divergence_coef", "only f_divergence_type alpha_divergence reads it"

    @property
    def _losses(self) -> list[str]:
        return [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type


class KtoSettings(AnswerSettings):
    """Arguments of Kahneman-Tversky optimization."""

    beta: PositiveFloat = 0.1
    """How strongly the model is held to the reference: the larger, the closer it stays."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` compares with an estimate of the divergence from the reference; `apo_zero_unpaired` with none."""

    desirable_weight: NonNegativeFloat = 1.0
    """Weight of the answers that are judged good."""

    undesirable_weight: NonNegativeFloat = 1.0
    """Weight of the answers that are judged bad."""


class OrpoSettings(AnswerSettings):
    """Arguments of odds ratio preference optimization."""

    beta: PositiveFloat = 0.1
    """Weight of the odds ratio beside the cross-entropy of the chosen text; lambda in the paper."""


class SimpoSettings(AnswerSettings):
    """Arguments of simple preference optimization; the defaults are those of its authors."""

    beta: PositiveFloat = 2.0
    """Scale of the mean log-probability of an answer's tokens, which is its reward."""

    simpo_gamma: NonNegativeFloat = 0.5
    """Margin that the reward of the chosen answer should have over that of the rejected one."""

    label_smoothing: Smoothing = 0.0
    """Share of the pairs whose answers may be swapped."""

    alpha: float = 0.0
    """Shape of the reward (AlphaPO); 0 is the log-probability itself."""


class CpoSettings(AnswerSettings):
    """Arguments of contrastive preference optimization."""

    beta: PositiveFloat = 0.1
    """Scale of the log-probability of an answer, which is its reward."""

    loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    """`sigmoid` is the loss of the paper; `ipo` and `simpo` take means over the tokens of an answer."""

    cpo_alpha: NonNegativeFloat = 1.0
    """Weight of the cross-entropy of the chosen answers, a mean over their tokens."""

    label_smoothing: Smoothing = 0.0
    """Share of the pairs whose answers may be swapped, for `sigmoid` and `simpo`."""

    simpo_gamma: NonNegativeFloat = 0.5
    """Margin of `simpo`."""

    alpha: float = 0.0
    """Shape of the reward (AlphaPO); 0 is the log-probability itself."""

    def complaints(self) -> Iterator[Complaint]:
        """Yields arguments that the loss does not read."""
        yield from _not_read(self, "simpo_gamma", [self.loss_type], ("simpo",))
        yield from _not_read(self, "label_smoothing", [self.loss_type], ("sigmoid", "simpo"))


def _not_read(settings: Params, key: str, names: Sequence[str], readers: Collection[str]) -> Iterator[Complaint]:
    """Yields a key that is set though none of the losses reads it."""
    if key in settings.model_fields_set and not set(names) & set(readers):
        yield key, f"loss_type {', '.join(names)} does not read it; {', '.join(sorted(readers))} would"
