# SPDX-License-Identifier: Apache-2.0
"""What the methods that learn from pairs have in common. A row is a pair: its chosen document, then its rejected one.

Shape letters: N trained positions, D documents, P pairs.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from oumi.core.batch import Batch
from oumi.core.methods.log_probs import LogProbs, wide
from oumi.core.methods.method import Method, StepSums, terms


class PairMethod(Method):
    """A method whose terms are pairs."""

    def num_terms(self, batch: Batch) -> int:
        """Returns the pairs."""
        return batch.num_rows


def halves(values_D: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values of the chosen documents [P] and those of the rejected ones [P]."""
    assert all(end - first == 2 for first, end in pairwise(batch.rows)), "a row is a pair"
    end = 2 * batch.num_rows  # a batch without rows has a document that belongs to none
    return values_D[0:end:2], values_D[1:end:2]


def of_chosen(documents_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns which positions belong to chosen documents [N], from the document of each."""
    return (documents_N % 2 == 0) & (documents_N < 2 * batch.num_rows)


def sums_for_tokens(batch: Batch) -> StepSums:
    """Returns the pairs, and the trained tokens of their chosen answers: what a mean over tokens needs of its step."""
    num_tokens = wide(of_chosen(batch.document_numbers(), batch)).sum()
    return {"pairs": torch.full_like(num_tokens, batch.num_rows), "tokens": num_tokens}


def token_mean(losses_N: torch.Tensor, step: StepSums) -> torch.Tensor:
    """Returns the part of a batch in the mean of a step over tokens, scaled as a sum over the pairs of the step."""
    return wide(losses_N).sum() * (step["pairs"] / step["tokens"].clamp(min=1))


def reward_metrics(
    rewards: tuple[torch.Tensor, torch.Tensor], log_probs: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the metrics of rewards and log-probabilities, each of the chosen [P] and the rejected answers [P]."""
    chosen, rejected = rewards
    return {
        "rewards/chosen": terms(chosen),
        "rewards/rejected": terms(rejected),
        "rewards/accuracies": terms((chosen > rejected).to(chosen.dtype)),
        "rewards/margins": terms(chosen - rejected),
        "logps/chosen": terms(log_probs[0]),
        "logps/rejected": terms(log_probs[1]),
    }


def token_metrics(log_probs: LogProbs, is_chosen_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the metrics of answer tokens, by TRL's definitions.

    The entropy is a mean over the tokens of all answers, the token accuracy over those of the chosen ones; a logit is
    the mean over the vocabulary.
    """
    entropy_N, logits_N, is_top_N = log_probs.measures
    return {
        "logits/chosen": terms(logits_N[is_chosen_N]),
        "logits/rejected": terms(logits_N[~is_chosen_N]),
        "entropy": terms(entropy_N),
        "mean_token_accuracy": terms(is_top_N[is_chosen_N]),
    }
