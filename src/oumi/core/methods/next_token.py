# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import Batch
from oumi.core.methods.linear_cross_entropy import linear_cross_entropy
from oumi.core.plan.parts import LossPlan

_PLAIN = LossPlan()


def next_token_loss(model: torch.nn.Module, batch: Batch, plan: LossPlan = _PLAIN) -> torch.Tensor:
    """Returns the cross-entropy summed over the trained positions of the batch, in float32 or wider.

    With no trained position the loss is zero and still reaches every weight. Label smoothing is that of
    arXiv 1512.00567; the z-loss that of PaLM (arXiv 2204.02311): the squared logarithm of the softmax's sum.
    """
    found, targets_N = model(batch), batch.targets[batch.trained]
    if found.head is not None:
        return linear_cross_entropy(found.states, found.head, targets_N, plan)
    logits_NV = found.states.to(torch.promote_types(found.states.dtype, torch.float32))
    loss = F.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=plan.label_smoothing)
    return loss + plan.z_loss * logits_NV.logsumexp(-1).square().sum() if plan.z_loss else loss
