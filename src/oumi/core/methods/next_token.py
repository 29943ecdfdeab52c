# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the next token: supervised fine-tuning and pretraining."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import Batch
from oumi.core.methods.linear_cross_entropy import linear_cross_entropy
from oumi.core.methods.method import Loss, Method, Reference, StepSums
from oumi.core.plan.parts import LossPlan, Plan

_PLAIN = LossPlan()


class NextToken(Method):
    """Learns the trained tokens of a row from the tokens before them."""

    def __init__(self, plan: Plan, _: Callable[[], Reference]) -> None:
        self._plan = plan.loss

    def num_terms(self, batch: Batch) -> int:
        """Returns the trained positions."""
        return batch.num_targets

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        """Returns the cross-entropy; in evaluation mode without label smoothing and z-loss."""
        return Loss(next_token_loss(model, batch, self._plan if model.training else _PLAIN))


def next_token_loss(model: torch.nn.Module, batch: Batch, plan: LossPlan = _PLAIN) -> torch.Tensor:
    """Returns the cross-entropy summed over the trained positions of the batch, in float32 or wider.

    With no trained position the loss is zero and still reaches every weight. Label smoothing is that of
    arXiv 1512.00567; the z-loss that of PaLM (arXiv 2204.02311): the squared logarithm of the softmax's sum.
    """
    prediction, targets_N = model(batch), batch.targets[batch.trained]
    if prediction.head is not None:
        return linear_cross_entropy(prediction.states, prediction.head, targets_N, plan)
    logits_NV = prediction.states.to(torch.promote_types(prediction.states.dtype, torch.float32))
    loss = F.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=plan.label_smoothing)
    return loss + plan.z_loss * logits_NV.logsumexp(-1).square().sum() if plan.z_loss else loss
