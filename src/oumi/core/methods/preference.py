# SPDX-License-Identifier: Apache-2.0
"""Preferences against a reference: of two answers to a prompt, the better one is to become more likely.

Shape letters: N trained positions, D documents, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from oumi.core.batch import Batch
from oumi.core.configs.methods import DpoSettings
from oumi.core.methods.log_probs import LogProbs, log_probs_of
from oumi.core.methods.method import Loss, Reference, StepSums
from oumi.core.methods.pair_losses import PAIR_LOSSES, Ratios, scored
from oumi.core.methods.pairs import (
    PairMethod,
    halves,
    of_chosen,
    reward_metrics,
    sums_for_tokens,
    token_mean,
    token_metrics,
)
from oumi.core.plan.parts import Plan


class DirectPreference(PairMethod):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and the losses that followed it.

    The loss of a pair is `-log sigmoid(beta * (margin of the model - margin of the reference))`, where a margin is the
    log-probability of the chosen answer less that of the rejected one; or what `loss_type` names instead, or a weighted
    sum of several. Metrics have the names that TRL gives them.
    """

    def __init__(self, plan: Plan, load_reference: Callable[[], Reference]) -> None:
        self._settings = DpoSettings.model_validate(plan.method.settings)
        self._reference = load_reference() if plan.method.has_reference else None
        self.reads_step_sums = "sft" in self._settings.weights

    def step_sums(self, model: torch.nn.Module, batch: Batch) -> StepSums:
        """Returns the number of pairs and of the tokens of chosen answers."""
        return sums_for_tokens(batch)

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the loss summed over pairs, and the metrics of rewards, log-probabilities and tokens."""
        settings = self._settings
        # First, so that the memory of its pass is free again while the model keeps what its gradients need.
        reference = None if self._reference is None else self._reference(batch)
        log_probs = log_probs_of(model(batch), batch, has_measures=True)
        is_chosen_N = of_chosen(log_probs.documents, batch)
        weights_N = None if settings.ld_alpha is None else _weights_beyond(log_probs, batch, settings.ld_alpha)
        log_probs_D = log_probs.sums(weights_N)
        ratios_D = log_probs_D
        if reference is not None:
            ratios_D = log_probs_D - reference.sums(weights_N)
        ratios = halves(ratios_D, batch)
        pairs = scored(Ratios(*ratios, *halves(log_probs.counts(), batch)), settings)
        total = log_probs_D[:0].sum()
        metrics = reward_metrics((settings.beta * ratios[0], settings.beta * ratios[1]), halves(log_probs_D, batch))
        for name, weight in settings.weights.items():
            if name == "sft":
                total = total + weight * token_mean(-log_probs.values[is_chosen_N], step)
            else:
                total = total + weight * PAIR_LOSSES[name](pairs).sum()
        return Loss(total, {**metrics, **token_metrics(log_probs, is_chosen_N)})


def _weights_beyond(log_probs: LogProbs, batch: Batch, weight: float) -> torch.Tensor:
    """Returns 1 for tokens up to the length of the shorter answer of their pair, `weight` for those beyond it [N].

    See LD-DPO (Liu et al. 2024, arXiv 2409.06411): a longer answer then weighs less for its length alone.
    """
    counts_D, documents_N = log_probs.counts(), log_probs.documents
    shorter_D = counts_D.clone()
    chosen, rejected = halves(counts_D, batch)
    end = 2 * batch.num_rows
    shorter_D[:end] = torch.minimum(chosen, rejected).repeat_interleave(2)
    firsts_D = counts_D.cumsum(0) - counts_D
    places_N = torch.arange(len(documents_N), device=documents_N.device) - firsts_D[documents_N]
    return torch.where(places_N < shorter_D[documents_N], 1.0, weight)
