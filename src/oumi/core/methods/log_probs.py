# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of targets without keeping logits, whose gradients may have any coefficients.

The cross-entropy of `linear_cross_entropy` takes its gradients in the forward pass, where each position counts alike.
The coefficient of a preference is known only when both answers of its pair are. So here the logits of a chunk are
computed a second time in the backward pass, unless the head is frozen: only its gradient sums over positions.

Shape letters: N positions, C positions of a chunk, D documents, d hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from oumi.core.batch import Batch, LmHead, Prediction
from oumi.core.methods.linear_cross_entropy import HeadPass, capped_logits, chunks, softmax

_NUM_MEASURES = 3


def wide(values: torch.Tensor) -> torch.Tensor:
    """Returns values in float64, for sums over many tokens; in float32 on MPS, which has no other."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


@dataclass(frozen=True)
class LogProbs:
    """What a model says of the trained tokens of a batch."""

    values: torch.Tensor
    """Log-probability of each token [N], in float32 or wider."""
    documents: torch.Tensor
    """Number of the document of each token [N]."""
    num_documents: int
    measures: torch.Tensor
    """Of the distribution at each token, without gradients [3, N]: its entropy in nats, the mean of its logits, and
    whether the token is the likeliest (1 or 0). Empty [3, 0] unless asked for."""

    def sums(self, weights_N: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the log-probability of each document [D], in float64: the sum over its tokens, perhaps weighted.

        A preference is the small difference of such sums: of a thousand tokens, float32 would keep four digits of it.
        """
        values_N = wide(self.values)
        sums_D = values_N.new_zeros(self.num_documents)
        return sums_D.index_add(0, self.documents, values_N if weights_N is None else values_N * weights_N)

    def counts(self) -> torch.Tensor:
        """Returns the number of trained tokens of each document [D], at least 1."""
        return torch.bincount(self.documents, minlength=self.num_documents).clamp_(min=1)


def log_probs_of(prediction: Prediction, batch: Batch, has_measures: bool = False) -> LogProbs:
    """Returns the log-probabilities of the trained tokens of a batch, and if `has_measures` what else they show."""
    targets_N = batch.targets[batch.trained]
    if prediction.head is not None:
        values_N, measures_3N = linear_log_probs(prediction.states, prediction.head, targets_N, has_measures)
    else:
        logits_NV = prediction.states.to(torch.promote_types(prediction.states.dtype, torch.float32))
        values_N = torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None])[:, 0]
        with torch.no_grad():
            measures_3N = logits_NV.new_empty(_NUM_MEASURES, 0)
            if has_measures:
                _, measures_3N, _ = _softmax(logits_NV.detach().clone(), targets_N, has_measures=True)
    return LogProbs(values_N, batch.document_numbers(), len(batch.sources), measures_3N)


def document_log_probs(prediction: Prediction, batch: Batch) -> torch.Tensor:
    """Returns the log-probability of the trained tokens of each document, summed [D], in float64."""
    return log_probs_of(prediction, batch).sums()


def linear_log_probs(
    states_Nd: torch.Tensor, head: LmHead, targets_N: torch.Tensor, has_measures: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log-probability of each target [N], in float32 or wider, and the measures of `LogProbs` [3, N]."""
    settings = (head, has_measures)
    log_probs_N, measures_3N = _LinearLogProbs.apply(states_Nd, head.weight, head.bias, targets_N, settings)
    return log_probs_N, measures_3N


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_Nd: torch.Tensor,
        weight_Vd: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        settings: tuple[LmHead, bool],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = states_Nd.device.type
        ctx.narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_Nd.dtype
        ctx.head, has_measures = settings
        needs_states, *needs_head = ctx.needs_input_grad[:3]
        # Of a frozen head, the gradient of a position is its coefficient times what is known now.
        ctx.is_frozen = needs_states and not any(needs_head)
        with torch.autocast(device, enabled=False):
            head_pass = HeadPass((states_Nd, weight_Vd, bias_V), ctx.narrow, (ctx.is_frozen, False, False))
            log_probs_N = torch.empty(len(states_Nd), dtype=head_pass.wide, device=states_Nd.device)
            measures_3N = log_probs_N.new_empty(_NUM_MEASURES, len(states_Nd) if has_measures else 0)
            for part in chunks(len(states_Nd), len(weight_Vd), device):
                logits_CV, slope = capped_logits(head_pass.logits(part), ctx.head)
                log_probs_N[part], measures_3C, softmax_CV = _softmax(logits_CV, targets_N[part], has_measures)
                if has_measures:
                    measures_3N[:, part] = measures_3C
                if ctx.is_frozen:
                    head_pass.add_gradient(part, _gradient(softmax_CV, targets_N[part], slope))
                del logits_CV, softmax_CV, slope  # else they would be held beside the matrices of the next chunk
        ctx.mark_non_differentiable(measures_3N)
        if ctx.is_frozen:
            ctx.save_for_backward(head_pass.d_states_Nd)
        else:
            ctx.save_for_backward(states_Nd, weight_Vd, bias_V, targets_N)
        return log_probs_N, measures_3N

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        coefficients_N, _ = outputs
        if ctx.is_frozen:
            (gradient_Nd,) = ctx.saved_tensors
            return gradient_Nd * coefficients_N[:, None].to(gradient_Nd.dtype), None, None, None, None
        states_Nd, weight_Vd, bias_V, targets_N = ctx.saved_tensors
        device = states_Nd.device.type
        with torch.autocast(device, enabled=False):
            head_pass = HeadPass((states_Nd, weight_Vd, bias_V), ctx.narrow, ctx.needs_input_grad)
            for part in chunks(len(states_Nd), len(weight_Vd), device):
                logits_CV, slope = capped_logits(head_pass.logits(part), ctx.head)
                # Written over the logits: a chunk needs the memory of one such matrix, not of two.
                softmax_CV = torch.softmax(logits_CV, dim=-1, out=logits_CV)
                gradient_CV = _gradient(softmax_CV, targets_N[part], slope)
                head_pass.add_gradient(part, gradient_CV.mul_(coefficients_N[part, None]))
                del logits_CV, softmax_CV, gradient_CV, slope
        return (*head_pass.gradients(), None, None)


def _softmax(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, has_measures: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns log-probabilities of targets [C], the measures of `LogProbs` [3, C], and the softmax [C, V].

    It may write over the logits.
    """
    column_C1 = targets_C[:, None]
    if not has_measures:
        log_probs_C1, _, softmax_CV = softmax(logits_CV, column_C1, out=logits_CV)
        return log_probs_C1[:, 0], logits_CV.new_empty(_NUM_MEASURES, 0), softmax_CV
    log_probs_C1, log_z_C1, softmax_CV = softmax(logits_CV, column_C1)
    entropy_C = log_z_C1[:, 0] - torch.einsum("cv,cv->c", softmax_CV, logits_CV)
    are_top_C = logits_CV.argmax(-1) == targets_C
    return log_probs_C1[:, 0], torch.stack([entropy_C, logits_CV.mean(-1), are_top_C.to(entropy_C.dtype)]), softmax_CV


def _gradient(softmax_CV: torch.Tensor, targets_C: torch.Tensor, slope: torch.Tensor | float) -> torch.Tensor:
    """Returns the gradient of log-probabilities by the head's product, in the memory of the softmax.

    By the logits, it is one at the target less the softmax; by the product, `slope` times that.
    """
    gradient_CV = softmax_CV.neg_()
    gradient_CV.scatter_add_(1, targets_C[:, None], torch.ones_like(gradient_CV[:, :1]))
    return gradient_CV if isinstance(slope, float) and slope == 1 else gradient_CV.mul_(slope)
