# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a linear head without its logits: computed chunk by chunk, gradients and all, in the forward pass.

Shape letters: N positions, C positions of a chunk, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from oumi.core.batch import LmHead
from oumi.core.plan.parts import LossPlan
from oumi.core.plan.step_sizes import chunk_rows
from oumi.core.system.matmul import backward_product, forward_product, prefers_onednn_for_gradient, product

_BLOCK_ROWS = 2048
"""Of the head's gradient, whose part by one chunk stays in the cache of a CPU until it is summed."""


def linear_cross_entropy(
    states_Nd: torch.Tensor, head: LmHead, targets_N: torch.Tensor, plan: LossPlan
) -> torch.Tensor:
    """Returns the cross-entropy of the head's logits against the targets, summed, in float32 or wider.

    The logits of a chunk of positions live only while their part of the loss and of the gradients is computed: three
    matrix products a chunk, none of them done twice (as Liger does, arXiv 2410.10989). With no positions the loss
    is zero and still reaches every weight.
    """
    inputs = (states_Nd, head.weight, head.bias)
    if not torch.is_grad_enabled():  # in evaluation, half of the work would be thrown away
        inputs = tuple(tensor if tensor is None else tensor.detach() for tensor in inputs)
    loss: torch.Tensor = _LinearCrossEntropy.apply(*inputs, targets_N, (head, plan))
    return loss


def chunks(num_rows: int, vocabulary: int, device: str) -> Iterator[slice]:
    """Yields slices of one size, the last one of what is left; the logits of a slice stay within a share of memory."""
    size = chunk_rows(num_rows, vocabulary, device)
    for start in range(0, num_rows, max(size, 1)):
        yield slice(start, min(start + size, num_rows))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_Nd: torch.Tensor,
        weight_Vd: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        terms: tuple[LmHead, LossPlan],
    ) -> torch.Tensor:
        device = states_Nd.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states_Nd.dtype
        with torch.autocast(device, enabled=False):
            # The dtypes are chosen here; mixed precision would cast once more.
            head_pass = HeadPass((states_Nd, weight_Vd, bias_V), narrow, ctx.needs_input_grad)
            loss = torch.zeros((), dtype=head_pass.wide, device=states_Nd.device)
            for part in chunks(len(states_Nd), len(weight_Vd), device):
                loss += _chunk(head_pass, targets_N[part], part, *terms)
        gradients = head_pass.gradients()
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.has = [gradient is not None for gradient in gradients]
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (upstream,) = outputs
        saved = iter(ctx.saved_tensors)
        # Nobody else holds them: they were made in the forward pass, for here.
        gradients = [next(saved).mul_(upstream) if has else None for has in ctx.has]
        return (*gradients, None, None)


class HeadPass:
    """The inputs in the dtype of matrix products, and the gradients that grow chunk by chunk."""

    def __init__(
        self,
        inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        narrow: torch.dtype,
        needs_gradient: tuple[bool, ...],
    ) -> None:
        states_Nd, weight_Vd, bias_V = inputs
        self.narrow = narrow
        """Of matrix products: that of mixed precision, else what the model's last layer gave."""
        self.wide = torch.promote_types(narrow, torch.float32)
        self.states, self.weight = states_Nd.to(narrow), weight_Vd.to(narrow)
        self.bias = bias_V
        self.d_states_Nd = torch.empty_like(states_Nd) if needs_gradient[0] else None
        self.d_weight_Vd: torch.Tensor | None = None
        """Of the chunks so far, None before the first one."""
        self._has_weight_gradient = needs_gradient[1]
        self.d_bias_V = torch.zeros_like(bias_V, dtype=self.wide) if bias_V is not None and needs_gradient[2] else None
        self.has_gradients = any(needs_gradient)
        self._weight_dtype = weight_Vd.dtype

    def gradients(self) -> list[torch.Tensor | None]:
        """Returns the gradients of states, weight and bias, each in the dtype of what it is of."""
        if self._has_weight_gradient and self.d_weight_Vd is None:  # there was no chunk
            self.d_weight_Vd = torch.zeros_like(self.weight, dtype=self.wide)
        of_head = (self.d_weight_Vd, self.d_bias_V)
        return [self.d_states_Nd, *(None if sums is None else sums.to(self._weight_dtype) for sums in of_head)]

    def logits(self, part: slice) -> torch.Tensor:
        """Returns the head's product [C, V], in the wide dtype."""
        product_CV = forward_product(self.states[part], self.weight).to(self.wide)
        return product_CV if self.bias is None else product_CV.add_(self.bias)

    def add_gradient(self, part: slice, gradient_CV: torch.Tensor) -> None:
        """Adds what a chunk contributes, from the gradient of the loss by the chunk's product."""
        if self.d_bias_V is not None:
            self.d_bias_V += gradient_CV.sum(0)
        narrow_CV = gradient_CV.to(self.narrow)
        if self.d_states_Nd is not None:
            self.d_states_Nd[part] = backward_product(narrow_CV, self.weight)
        if not self._has_weight_gradient:
            return
        states_Cd = self.states[part]
        if prefers_onednn_for_gradient(self.weight, self.weight.numel()):
            self._add_blocks(narrow_CV, states_Cd)
            return
        if self.d_weight_Vd is None:
            self.d_weight_Vd = torch.zeros_like(self.weight, dtype=self.wide)
        if self.narrow == self.wide:
            self.d_weight_Vd.addmm_(narrow_CV.t(), states_Cd)
        elif narrow_CV.is_cuda and torch.version.hip is None:  # adds up in the wide dtype by itself
            sums = self.d_weight_Vd
            torch.addmm(sums, narrow_CV.t(), states_Cd, out_dtype=self.wide, out=sums)
        else:
            self.d_weight_Vd.add_(narrow_CV.t() @ states_Cd)

    def _add_blocks(self, gradient_CV: torch.Tensor, states_Cd: torch.Tensor) -> None:
        """Adds the gradient of the weight by oneDNN, which cannot add to what is there: block by block."""
        is_first = self.d_weight_Vd is None
        sums_Vd = torch.empty_like(self.weight) if self.d_weight_Vd is None else self.d_weight_Vd
        for start in range(0, len(sums_Vd), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            part = product(gradient_CV[:, rows].t(), states_Cd, by_onednn=True)
            sums_Vd[rows].copy_(part) if is_first else sums_Vd[rows].add_(part)
        self.d_weight_Vd = sums_Vd


def _chunk(head_pass: HeadPass, targets_C: torch.Tensor, part: slice, head: LmHead, plan: LossPlan) -> torch.Tensor:
    """Returns the loss of one chunk, after counting its gradients."""
    # The kernel always writes the gradient, knows no bias, and computes in float32.
    is_float32 = head_pass.wide == torch.float32
    if head_pass.states.is_cuda and head_pass.has_gradients and head_pass.bias is None and is_float32 and _has_triton():
        return _chunk_by_kernel(head_pass, targets_C, part, head, plan)
    logits_CV, slope = capped_logits(head_pass.logits(part), head)
    column_C1 = targets_C[:, None]
    smooth, z_loss = plan.label_smoothing, plan.z_loss
    mean_C1 = logits_CV.mean(-1, keepdim=True) if smooth else None
    # Everything is written over the logits: a chunk needs the memory of one such matrix, not of three.
    log_p_C1, log_z_C1, gradient_CV = softmax(logits_CV, column_C1, out=logits_CV)
    loss = -(1 - smooth) * log_p_C1.sum()
    if mean_C1 is not None:
        loss -= smooth * (mean_C1 - log_z_C1).sum()
    if z_loss:
        loss += z_loss * log_z_C1.square().sum()
    if not head_pass.has_gradients:
        return loss
    # By the logits: the softmax, less one at the target.
    if z_loss:
        gradient_CV.mul_(1 + 2 * z_loss * log_z_C1)
    gradient_CV.scatter_add_(1, column_C1, torch.full_like(log_p_C1, smooth - 1))
    if smooth:
        gradient_CV.sub_(smooth / gradient_CV.shape[1])
    head_pass.add_gradient(part, gradient_CV if isinstance(slope, float) and slope == 1 else gradient_CV.mul_(slope))
    return loss


def _chunk_by_kernel(
    head_pass: HeadPass, targets_C: torch.Tensor, part: slice, head: LmHead, plan: LossPlan
) -> torch.Tensor:
    """Does what `_chunk` does, without a wide copy of the logits."""
    # Triton is there for Linux only, and is slow to import.
    from oumi.core.methods.softmax_kernel import cross_entropy_and_slope

    product_CV = forward_product(head_pass.states[part], head_pass.weight)
    losses_C = cross_entropy_and_slope(
        product_CV,
        targets_C,
        scale=head.scale,
        softcap=head.softcap,
        label_smoothing=plan.label_smoothing,
        z_loss=plan.z_loss,
    )
    head_pass.add_gradient(part, product_CV)
    return losses_C.sum()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    """Returns True where kernels for a GPU can be made: torch brings Triton for Linux."""
    return find_spec("triton") is not None


def softmax(
    logits_CV: torch.Tensor, column_C1: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the log-probability of the targets and the log of the normalizer [C, 1], and the softmax [C, V].

    One exponential of each logit serves them all. `out` may be the logits themselves.
    """
    highest_C1, target_C1 = logits_CV.amax(-1, keepdim=True), logits_CV.gather(1, column_C1)
    softmax_CV = torch.softmax(logits_CV, dim=-1, out=out)
    # At the highest logit, the softmax is one part of the total; so it is never below 1 / V.
    log_total_C1 = softmax_CV.amax(-1, keepdim=True).log().neg_()
    return target_C1 - highest_C1 - log_total_C1, highest_C1 + log_total_C1, softmax_CV


def capped_logits(product_CV: torch.Tensor, head: LmHead) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Returns the logits of the head's product, written over it, and their slope by it."""
    if head.scale != 1:
        product_CV.mul_(head.scale)
    if head.softcap is None:
        return product_CV, head.scale
    product_CV.div_(head.softcap).tanh_()
    slope_CV = product_CV.square().neg_().add_(1).mul_(head.scale)
    return product_CV.mul_(head.softcap), slope_CV
