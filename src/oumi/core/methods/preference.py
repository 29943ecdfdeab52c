# SPDX-License-Identifier: Apache-2.0
"""Preferences: of two answers to the same prompt, the better one is to become more likely.

Shape letters: D documents, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import Batch
from oumi.core.configs.methods import DpoSettings
from oumi.core.methods.log_probs import document_log_probs
from oumi.core.methods.method import Loss, Reference
from oumi.core.plan.parts import Plan


class DirectPreference:
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    The loss of a pair is `-log sigmoid(beta * (margin of the model - margin of the reference))`, where a margin is the
    log-probability of the chosen answer less that of the rejected one. Metrics have the names that TRL gives them.
    """

    def __init__(self, plan: Plan, load_reference: Callable[[], Reference]) -> None:
        self._beta = DpoSettings.model_validate(plan.method.settings).beta
        self._reference = load_reference()

    def num_terms(self, batch: Batch) -> int:
        """Returns the pairs."""
        return batch.num_rows

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Returns the loss summed over pairs, and the sums of rewards, margins, accuracies and log-probabilities."""
        assert all(end - first == 2 for first, end in pairwise(batch.rows)), "a row is a pair"
        log_probs_D = document_log_probs(model(batch), batch)
        with torch.no_grad():
            reference_D = document_log_probs(self._reference(batch), batch)
        rewards_D = self._beta * (log_probs_D - reference_D)
        chosen, rejected = slice(0, 2 * batch.num_rows, 2), slice(1, 2 * batch.num_rows, 2)
        margins_P = rewards_D[chosen] - rewards_D[rejected]
        metrics = {
            "rewards/chosen": rewards_D[chosen],
            "rewards/rejected": rewards_D[rejected],
            "rewards/accuracies": (margins_P > 0).to(margins_P.dtype),
            "rewards/margins": margins_P,
            "logps/chosen": log_probs_D[chosen],
            "logps/rejected": log_probs_D[rejected],
        }
        return Loss(
            -F.logsigmoid(margins_P).sum(), {name: values_P.detach().sum() for name, values_P in metrics.items()}
        )
