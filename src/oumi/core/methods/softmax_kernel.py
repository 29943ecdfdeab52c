# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of logits and its slope in one kernel of a GPU, in two passes over them; needs Triton.

Shape letters: C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 16_384
_NUM_WARPS = 32


def cross_entropy_and_slope(
    product_CV: torch.Tensor,
    targets_C: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
) -> torch.Tensor:
    """Returns the loss of each position [C] in float32, and writes its slope by the product over the product.

    Arithmetic is in float32 whatever the product's dtype. The maximum and the sum of the softmax are found in one
    pass (arXiv 1805.02867).
    """
    losses_C = torch.empty(len(product_CV), dtype=torch.float32, device=product_CV.device)
    vocabulary = product_CV.shape[1]
    _over_rows[(len(product_CV),)](
        product_CV,
        targets_C,
        losses_C,
        product_CV.stride(0),
        vocabulary,
        scale,
        softcap or 1.0,
        label_smoothing,
        z_loss,
        HAS_CAP=softcap is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocabulary)),
        num_warps=_NUM_WARPS,
    )
    return losses_C


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1  # Triton's language has no tanh of its own


@triton.jit
def _over_rows(
    product,  # pointers and numbers, as Triton hands them on
    targets,
    losses,
    stride,
    vocabulary,
    scale,
    softcap,
    smooth,
    z_loss,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # rows times vocabulary may exceed 32 bits
    product += row * stride
    target = tl.load(targets + row)
    largest = float("-inf")
    total = 0.0
    sum_of_logits = 0.0
    for start in range(0, vocabulary, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < vocabulary
        logits = tl.load(product + place, mask=inside, other=0.0).to(tl.float32) * scale
        if HAS_CAP:
            logits = softcap * _tanh(logits / softcap)
        sum_of_logits += tl.sum(tl.where(inside, logits, 0.0))
        logits = tl.where(inside, logits, float("-inf"))
        # The sum so far is scaled whenever a larger logit comes, so one pass gives both.
        before = largest
        largest = tl.maximum(before, tl.max(logits))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(logits - largest))
    log_z = largest + tl.log(total)
    target_logit = tl.load(product + target).to(tl.float32) * scale
    if HAS_CAP:
        target_logit = softcap * _tanh(target_logit / softcap)
    loss = log_z - (1 - smooth) * target_logit - smooth / vocabulary * sum_of_logits + z_loss * log_z * log_z
    tl.store(losses + row, loss)
    tl.debug_barrier()  # the target is read before it is written over
    for start in range(0, vocabulary, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < vocabulary
        logits = tl.load(product + place, mask=inside, other=0.0).to(tl.float32) * scale
        slope = scale
        if HAS_CAP:
            capped = _tanh(logits / softcap)
            logits = softcap * capped
            slope = scale * (1 - capped * capped)
        gradient = tl.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - smooth / vocabulary
        gradient = tl.where(place == target, gradient - (1 - smooth), gradient) * slope
        tl.store(product + place, gradient.to(product.dtype.element_ty), mask=inside)
