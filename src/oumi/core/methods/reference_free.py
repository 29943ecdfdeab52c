# SPDX-License-Identifier: Apache-2.0
"""Preferences without a reference: ORPO, CPO and SimPO.

Shape letters: N trained positions, D documents, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import IGNORED, Batch
from oumi.core.configs.methods import CpoSettings, OrpoSettings, SimpoSettings
from oumi.core.methods.log_probs import LogProbs, log_probs_of
from oumi.core.methods.method import Loss, Reference, StepSums, terms
from oumi.core.methods.pair_losses import smoothed
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

_LARGEST_LOG_PROB = -1e-12
"""Of an answer, beyond which the odds and their gradient would not be finite."""


class OddsRatio(PairMethod):
    """Odds ratio preference optimization (ORPO, Hong et al. 2024, arXiv 2403.07691).

    The loss is the cross-entropy of prompt and chosen answer, a mean over their tokens, less `beta` times the mean over
    pairs of the logarithm of the sigmoid of the log odds ratio. Probabilities of answers are means per token.
    """

    reads_step_sums = True

    def __init__(self, plan: Plan, _: Callable[[], Reference]) -> None:
        self._beta = OrpoSettings.model_validate(plan.method.settings).beta

    def step_sums(self, model: torch.nn.Module, batch: Batch) -> StepSums:
        """Returns the number of pairs and of the tokens of chosen documents."""
        return sums_for_tokens(_with_chosen_prompts(batch))

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the loss as a sum over pairs, and its metrics."""
        whole = _with_chosen_prompts(batch)
        whole_log_probs = log_probs_of(model(whole), whole, has_measures=True)
        cross_entropy = token_mean(-whole_log_probs.values[of_chosen(whole_log_probs.documents, whole)], step)
        is_answer_N = (batch.targets != IGNORED)[whole.trained]
        log_probs = LogProbs(
            whole_log_probs.values[is_answer_N],
            whole_log_probs.documents[is_answer_N],
            whole_log_probs.num_documents,
            whole_log_probs.measures[:, is_answer_N],
        )
        means = halves((log_probs.sums() / log_probs.counts()).clamp(max=_LARGEST_LOG_PROB), batch)
        chosen, rejected = means
        log_odds_P = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
        log_ratio_P = F.logsigmoid(log_odds_P)
        metrics = {
            **reward_metrics((self._beta * chosen, self._beta * rejected), means),
            "nll_loss": _step_mean(cross_entropy, batch),
            "log_odds_ratio": terms(log_ratio_P),
            "log_odds_chosen": terms(log_odds_P),
            **token_metrics(log_probs, of_chosen(log_probs.documents, batch)),
        }
        return Loss(cross_entropy - self._beta * log_ratio_P.sum(), metrics)


class ContrastivePreference(PairMethod):
    """Contrastive preference optimization (CPO, Xu et al. 2024, arXiv 2401.08417) and what followed it.

    The reward of an answer is `beta` times its log-probability, for `simpo` and `ipo` per token; `alpha` shapes it
    (AlphaPO, Gupta et al. 2025, arXiv 2501.03884). The cross-entropy of the chosen answers is a mean over tokens.
    """

    def __init__(self, plan: Plan, _: Callable[[], Reference]) -> None:
        self._settings = self._read(plan)
        self.reads_step_sums = self._settings.cpo_alpha != 0

    def _read(self, plan: Plan) -> CpoSettings:
        return CpoSettings.model_validate(plan.method.settings)

    def step_sums(self, model: torch.nn.Module, batch: Batch) -> StepSums:
        """Returns the number of pairs and of the tokens of chosen answers."""
        return sums_for_tokens(batch)

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the loss as a sum over pairs, and its metrics."""
        settings = self._settings
        log_probs = log_probs_of(model(batch), batch, has_measures=True)
        is_chosen_N = of_chosen(log_probs.documents, batch)
        log_probs_D = log_probs.sums()
        if settings.loss_type in ("ipo", "simpo"):
            log_probs_D = log_probs_D / log_probs.counts()
        answers = halves(log_probs_D, batch)
        # The limit at 0 is the log-probability itself.
        chosen, rejected = (
            -torch.expm1(-settings.alpha * answer) / settings.alpha if settings.alpha else answer for answer in answers
        )
        total = self._compare(chosen - rejected).sum()
        metrics = reward_metrics((settings.beta * chosen, settings.beta * rejected), answers)
        if settings.cpo_alpha:
            cross_entropy = token_mean(-log_probs.values[is_chosen_N], step)
            total = total + settings.cpo_alpha * cross_entropy
            metrics["nll_loss"] = _step_mean(cross_entropy, batch)
        return Loss(total, {**metrics, **token_metrics(log_probs, is_chosen_N)})

    def _compare(self, difference_P: torch.Tensor) -> torch.Tensor:
        """Returns the loss of each pair [P], from the difference of its rewards before they are scaled."""
        settings = self._settings
        if settings.loss_type == "hinge":
            return torch.relu(1 - settings.beta * difference_P)
        if settings.loss_type == "ipo":
            return (difference_P - 1 / (2 * settings.beta)) ** 2
        margin = settings.simpo_gamma if settings.loss_type == "simpo" else 0.0
        return smoothed(settings.beta * difference_P - margin, settings.label_smoothing)


class SimplePreference(ContrastivePreference):
    """Simple preference optimization (SimPO, Meng et al. 2024, arXiv 2405.14734).

    The logistic loss of the difference of mean log-probabilities, scaled by `beta`, less the margin `simpo_gamma`.
    """

    def _read(self, plan: Plan) -> CpoSettings:
        settings = SimpoSettings.model_validate(plan.method.settings)
        return CpoSettings(loss_type="simpo", cpo_alpha=0.0, **dict(settings))


def _with_chosen_prompts(batch: Batch) -> Batch:
    """Returns a batch whose chosen documents are trained as a whole, but for documents with images.

    A model does not predict the tokens that stand for an image.
    """
    targets = batch.targets.clone()
    for document in range(0, 2 * batch.num_rows, 2):
        first, end = batch.offsets[document : document + 2]
        if not (batch.num_images and batch.num_images[document]):
            targets[first : end - 1] = batch.tokens[first + 1 : end]
    return replace(batch, targets=targets, trained=(targets != IGNORED).nonzero()[:, 0])


def _log_of_rest(log_p: torch.Tensor) -> torch.Tensor:
    """Returns the logarithm of 1 less a probability below 1, from the logarithm of that probability."""
    # Each form is exact where the other one loses digits (Maechler 2012).
    return torch.where(log_p < -0.6931, torch.log1p(-torch.exp(log_p)), torch.log(-torch.expm1(log_p)))


def _step_mean(total: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the metric [2] of a mean of the step that is scaled as a sum over its pairs."""
    return torch.stack([total.detach(), torch.full_like(total.detach(), batch.num_rows)])
