# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the next token."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.batch import Batch


def next_token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Returns the cross-entropy summed over the trained positions of the batch, in float32.

    The model gives logits [N, V] at the N trained positions only. With none, the loss is zero and still
    reaches every weight.
    """
    logits_NV = model(batch)
    return F.cross_entropy(logits_NV.float(), batch.targets[batch.trained], reduction="sum")
