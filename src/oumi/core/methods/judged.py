# SPDX-License-Identifier: Apache-2.0
"""Answers that are judged one by one: the good ones are to become more likely, the bad ones less.

Shape letters: N trained positions, R rows, each of one document.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from oumi.core.batch import Batch
from oumi.core.configs.methods import KtoSettings
from oumi.core.methods.log_probs import log_probs_of, wide
from oumi.core.methods.method import Loss, Method, Reference, StepSums, terms
from oumi.core.methods.pairs import token_metrics
from oumi.core.plan.parts import Plan


class JudgedAnswers(Method):
    """Kahneman-Tversky optimization (KTO, Ethayarajh et al. 2024, arXiv 2402.01306).

    The reward of an answer is its log-probability less that under the reference, times `beta`. The loss of a good
    answer is `1 - sigmoid(reward - beta * kl)`, that of a bad one `1 - sigmoid(beta * kl - reward)`. The divergence
    `kl` from the reference is estimated from answers to the prompts of other rows, over the whole step: without
    gradients, and zero at least. `apo_zero_unpaired` (arXiv 2408.06266) leaves it out. Metrics have the names that TRL
    gives them; `rewards/accuracies`, which TRL does not have, is the share of rewards with the sign of the judgement.
    """

    reads_step_sums = True

    def __init__(self, plan: Plan, load_reference: Callable[[], Reference]) -> None:
        self._settings = KtoSettings.model_validate(plan.method.settings)
        self._estimates = plan.method.mismatches
        self._reference = load_reference()

    def num_terms(self, batch: Batch) -> int:
        """Returns the answers."""
        return batch.num_rows

    def step_sums(self, model: torch.nn.Module, batch: Batch) -> StepSums:
        """Returns how many answers are good and bad, and the sum of the divergences that are estimated of a batch."""
        is_good_R = _judgements(batch)
        num_good = wide(is_good_R).sum()
        sums = {"good": num_good, "bad": len(is_good_R) - num_good}
        if not self._estimates:
            return sums
        # Ranks with a divided model take as many passes, so one without such rows passes what it has.
        compared = batch if batch.mismatched is None else batch.mismatched
        own_D = log_probs_of(model(compared), compared).sums()
        ratios_D = own_D - self._reference(compared).sums()
        num_estimates = 0 if batch.mismatched is None else compared.num_rows
        kl = ratios_D[:num_estimates].sum()
        return {**sums, "kl": kl, "estimates": torch.full_like(kl, num_estimates)}

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the loss summed over answers, and the metrics of good and of bad ones."""
        settings, is_good_R = self._settings, _judgements(batch)
        reference_D = self._reference(batch).sums()
        log_probs = log_probs_of(model(batch), batch, has_measures=True)
        log_probs_R = log_probs.sums()[: batch.num_rows]
        rewards_R = settings.beta * (log_probs_R - reference_D[: batch.num_rows])
        kl = torch.zeros_like(log_probs_R[:0].sum())
        if self._estimates:
            kl = (step["kl"] / step["estimates"].clamp(min=1)).clamp(min=0)
        # The value of an answer, which grows with the reward of a good one and falls with that of a bad one.
        sign_R = torch.where(is_good_R, 1.0, -1.0)
        weights_R = torch.where(is_good_R, settings.desirable_weight, settings.undesirable_weight)
        losses_R = weights_R * (1 - torch.sigmoid(sign_R * (rewards_R - settings.beta * kl)))
        metrics = _metrics(rewards_R.detach(), log_probs_R.detach(), is_good_R, step)
        if self._estimates:
            metrics["kl"] = terms(kl.expand(batch.num_rows))
        is_row_N = log_probs.documents < batch.num_rows
        return Loss(losses_R.sum(), metrics | token_metrics(log_probs, is_good_R[log_probs.documents[is_row_N]]))


def _judgements(batch: Batch) -> torch.Tensor:
    """Returns which rows are judged good [R]."""
    return torch.tensor([columns["label"] for columns in batch.columns], dtype=torch.bool, device=batch.tokens.device)


def _metrics(
    rewards_R: torch.Tensor, log_probs_R: torch.Tensor, is_good_R: torch.Tensor, step: StepSums
) -> dict[str, torch.Tensor]:
    """Returns the metrics of rewards and log-probabilities; the margin is the difference of two means of the step."""
    num_good, num_bad = step["good"], step["bad"]
    # Each row adds its share, so that all of them together are one term.
    shares_R = torch.where(is_good_R, 1 / num_good.clamp(min=1), -1 / num_bad.clamp(min=1))
    has_both = (num_good > 0) & (num_bad > 0)
    margin = torch.stack([(shares_R * rewards_R).sum(), has_both * len(is_good_R) / (num_good + num_bad)])
    return {
        "rewards/chosen": terms(rewards_R[is_good_R]),
        "rewards/rejected": terms(rewards_R[~is_good_R]),
        "rewards/margins": margin,
        "rewards/accuracies": terms(wide((rewards_R > 0) == is_good_R)),
        "logps/chosen": terms(log_probs_R[is_good_R]),
        "logps/rejected": terms(log_probs_R[~is_good_R]),
    }
