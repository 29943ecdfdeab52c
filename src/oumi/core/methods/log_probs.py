# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of targets without keeping logits, whose gradients may have any coefficients.

The cross-entropy of `linear_cross_entropy` takes its gradients in the forward pass, where each position counts alike.
The coefficient of a preference is known only when both answers of its pair are, so here the logits of a chunk are
computed a second time in the backward pass.

Shape letters: N positions, C positions of a chunk, D documents, d hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from oumi.core.batch import Batch, LmHead, Prediction
from oumi.core.methods.linear_cross_entropy import HeadPass, capped_logits, chunks


def document_log_probs(prediction: Prediction, batch: Batch) -> torch.Tensor:
    """Returns the log-probability of the trained tokens of each document, summed [D], in float64.

    A preference is the small difference of such sums: of a thousand tokens, float32 would keep four digits of it.
    """
    targets_N = batch.targets[batch.trained]
    if prediction.head is not None:
        log_probs_N = linear_log_probs(prediction.states, prediction.head, targets_N)
    else:
        logits_NV = prediction.states.to(torch.promote_types(prediction.states.dtype, torch.float32))
        log_probs_N = torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None])[:, 0]
    ends = torch.tensor(batch.offsets[1:], device=targets_N.device)
    document_N = torch.bucketize(batch.trained, ends, right=True)
    wide = torch.float32 if log_probs_N.device.type == "mps" else torch.float64  # which MPS does not have
    sums_D = torch.zeros(len(ends), dtype=wide, device=log_probs_N.device)
    return sums_D.index_add(0, document_N, log_probs_N.to(wide))


def linear_log_probs(states_Nd: torch.Tensor, head: LmHead, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns the log-probability that a head gives to each target [N], in float32 or wider."""
    log_probs_N: torch.Tensor = _LinearLogProbs.apply(states_Nd, head.weight, head.bias, targets_N, head)
    return log_probs_N


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_Nd: torch.Tensor,
        weight_Vd: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        head: LmHead,
    ) -> torch.Tensor:
        device = states_Nd.device.type
        ctx.narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_Nd.dtype
        ctx.save_for_backward(states_Nd, weight_Vd, bias_V, targets_N)
        ctx.head = head
        with torch.autocast(device, enabled=False):
            head_pass = HeadPass((states_Nd, weight_Vd, bias_V), ctx.narrow, (False, False, False))
            log_probs_N = torch.empty(len(states_Nd), dtype=head_pass.wide, device=states_Nd.device)
            for part in chunks(len(states_Nd), len(weight_Vd), device):
                logits_CV, _ = capped_logits(head_pass.logits(part), head)
                targets_C = logits_CV.gather(1, targets_N[part, None])[:, 0]
                log_probs_N[part] = targets_C - logits_CV.logsumexp(-1)
        return log_probs_N

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (coefficients_N,) = outputs
        states_Nd, weight_Vd, bias_V, targets_N = ctx.saved_tensors
        device = states_Nd.device.type
        with torch.autocast(device, enabled=False):
            head_pass = HeadPass((states_Nd, weight_Vd, bias_V), ctx.narrow, ctx.needs_input_grad)
            for part in chunks(len(states_Nd), len(weight_Vd), device):
                logits_CV, slope = capped_logits(head_pass.logits(part), ctx.head)
                # The gradient of a log-probability by the logits: one at the target, less the softmax.
                gradient_CV = torch.softmax(logits_CV, dim=-1).neg_()
                ones_C1 = torch.ones_like(gradient_CV[:, :1])
                gradient_CV.scatter_add_(1, targets_N[part, None], ones_C1)
                head_pass.add_gradient(part, gradient_CV.mul_(coefficients_N[part, None]).mul_(slope))
        return (*head_pass.gradients(), None, None)
