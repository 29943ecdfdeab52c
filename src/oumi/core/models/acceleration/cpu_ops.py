# SPDX-License-Identifier: Apache-2.0
"""Autograd functions for parts of a layer, with fewer passes over memory and fewer saved tensors.

On a CPU without compilation, the operations between matrix products are bound by memory bandwidth, and autograd reads
and writes each tensor several times. Shape letters: T tokens, d hidden size, F inner size, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.system.matmul import backward_product, forward_product, weight_product


class RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * (offset + weight), over the last dimension (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_d: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        x_Td = x.reshape(-1, x.shape[-1])
        scale_d = weight_d if offset == 0 else weight_d + offset
        # vector_norm reads x once, while x.square().mean() would allocate a tensor of the size of x.
        norm_T1 = torch.linalg.vector_norm(x_Td, dim=-1, keepdim=True)
        factor_T1 = norm_T1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        # The normalized states are not saved: the backward pass recomputes them from x and one factor per token.
        ctx.save_for_backward(x_Td, scale_d, factor_T1)
        return _as_rows_of(x, torch.mul(x_Td, factor_T1).mul_(scale_d))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_Td, scale_d, factor_T1 = ctx.saved_tensors
        dy_Td = upstream[0].reshape(x_Td.shape)
        product_Td = x_Td * dy_Td
        # A matrix-vector product scales and sums without a further tensor of the size of x.
        d_weight = torch.mv(product_Td.t(), factor_T1[:, 0]) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        along_T1 = torch.mv(product_Td, scale_d)[:, None] * factor_T1.pow(3) / x_Td.shape[1]
        # The result reuses the memory of the product, which is not needed any more.
        dx_Td = torch.mul(dy_Td, scale_d, out=product_Td).mul_(factor_T1).addcmul_(x_Td, along_T1, value=-1)
        return dx_Td.view(upstream[0].shape), d_weight, None, None


class Linear(torch.autograd.Function):
    """x W^T + b, by the library that is the fastest for each product (see `matmul.py`)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_oi: torch.Tensor, bias_o: torch.Tensor | None) -> torch.Tensor:
        x_Ti = x.reshape(-1, x.shape[-1])
        # The input is needed only for the gradient of the weight, so not below an adapter.
        ctx.save_for_backward(x_Ti if ctx.needs_input_grad[1] else None, weight_oi)
        y_To = forward_product(x_Ti, weight_oi)
        return _as_rows_of(x, y_To if bias_o is None else y_To.add_(bias_o))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_Ti, weight_oi = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dy_To = upstream[0].reshape(-1, len(weight_oi))
        return (
            backward_product(dy_To, weight_oi).view(*upstream[0].shape[:-1], -1) if needs_x else None,
            weight_product(dy_To, x_Ti) if needs_weight else None,
            dy_To.sum(0) if needs_bias else None,
        )


class AdaptedLinear(torch.autograd.Function):
    """x W^T + scale (x A^T) B^T with a frozen W (LoRA, arXiv 2106.09685), without a tensor for each part."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_oi: torch.Tensor, a_ri: torch.Tensor, b_or: torch.Tensor, scale: float
    ) -> torch.Tensor:
        x_Ti = x.reshape(-1, x.shape[-1])
        inner_Tr = x_Ti @ a_ri.t()
        ctx.save_for_backward(x_Ti, weight_oi, a_ri, b_or, inner_Tr)
        ctx.scale = scale
        return _as_rows_of(x, forward_product(x_Ti, weight_oi).addmm_(inner_Tr, b_or.t(), alpha=scale))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_Ti, weight_oi, a_ri, b_or, inner_Tr = ctx.saved_tensors
        needs_x, _, needs_a, needs_b, _ = ctx.needs_input_grad
        dy_To = upstream[0].reshape(-1, len(weight_oi))
        d_inner_Tr = (dy_To @ b_or).mul_(ctx.scale)
        dx_Ti = backward_product(dy_To, weight_oi).addmm_(d_inner_Tr, a_ri) if needs_x else None
        return (
            None if dx_Ti is None else dx_Ti.view(*upstream[0].shape[:-1], -1),
            None,
            d_inner_Tr.t() @ x_Ti if needs_a else None,
            (dy_To.t() @ inner_Tr).mul_(ctx.scale) if needs_b else None,
            None,
        )


class GatedMlp(torch.autograd.Function):
    """(act(x G^T) * (x U^T)) D^T, which saves two inner tensors instead of four (SwiGLU, arXiv 2002.05202)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_Fd: torch.Tensor,
        up_Fd: torch.Tensor,
        down_dF: torch.Tensor,
        activation: Activation,
    ) -> torch.Tensor:
        x_Td = x.reshape(-1, x.shape[-1])
        g_TF, u_TF = forward_product(x_Td, gate_Fd), forward_product(x_Td, up_Fd)
        ctx.save_for_backward(x_Td, g_TF, u_TF, gate_Fd, up_Fd, down_dF)
        ctx.activation = activation
        inner_TF = activation.forward(g_TF).mul_(u_TF)
        return _as_rows_of(x, forward_product(inner_TF, down_dF))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_Td, g_TF, u_TF, gate_Fd, up_Fd, down_dF = ctx.saved_tensors
        needs_x, needs_gate, needs_up, needs_down, _ = ctx.needs_input_grad
        dy_Td = upstream[0].reshape(-1, upstream[0].shape[-1])
        # Recomputed, which is cheap compared with the memory for saving both.
        active_TF = ctx.activation.forward(g_TF)
        d_down = weight_product(dy_Td, active_TF * u_TF) if needs_down else None
        d_inner_TF = backward_product(dy_Td, down_dF)
        # In place from here on: each product is the last use of the tensor that it overwrites.
        du_TF = active_TF.mul_(d_inner_TF)
        dg_TF = ctx.activation.backward(d_inner_TF.mul_(u_TF), g_TF)
        dx_Td = backward_product(dg_TF, gate_Fd).add_(backward_product(du_TF, up_Fd)) if needs_x else None
        return (
            None if dx_Td is None else dx_Td.view(upstream[0].shape),
            weight_product(dg_TF, x_Td) if needs_gate else None,
            weight_product(du_TF, x_Td) if needs_up else None,
            d_down,
            None,
        )


def _as_rows_of(x: torch.Tensor, y_To: torch.Tensor) -> torch.Tensor:
    """Returns the rows with the leading dimensions of `x`, in the same memory."""
    # As torch's own linear layer does it. Autograd forbids to change a view of a custom function's result in place, as
    # models do that clip their queries, or add the output of their experts to that of the shared one.
    result: torch.Tensor = torch.ops.aten._unsafe_view(y_To, [*x.shape[:-1], y_To.shape[-1]])
    return result


class Activation:
    """An elementwise function and its gradient, which overwrites the incoming gradient."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], gradient: Any, **settings: str) -> None:
        self.forward = forward
        self._gradient = gradient
        self._settings = settings

    def backward(self, upstream: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Returns `upstream` times the derivative at `x`, in the memory of `upstream`."""
        result: torch.Tensor = self._gradient(upstream, x, **self._settings, grad_input=upstream)
        return result


SILU = Activation(F.silu, torch.ops.aten.silu_backward.grad_input)
GELU = Activation(F.gelu, torch.ops.aten.gelu_backward.grad_input)
GELU_TANH = Activation(
    lambda x: F.gelu(x, approximate="tanh"), torch.ops.aten.gelu_backward.grad_input, approximate="tanh"
)


class Rotate(torch.autograd.Function):
    """Rotary position embedding (arXiv 2104.09864) that pairs the two halves of each head [1, H, T, E]."""

    @staticmethod
    def forward(ctx: Any, x_1HTE: torch.Tensor, cos_11TE: torch.Tensor, sin_11TE: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos_11TE, sin_11TE)
        return _rotated(x_1HTE, cos_11TE, sin_11TE)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_11TE, sin_11TE = ctx.saved_tensors
        # The transpose of a rotation is the rotation by the negative angle.
        return _rotated(upstream[0], cos_11TE, -sin_11TE), None, None


def _rotated(x_1HTE: torch.Tensor, cos_11TE: torch.Tensor, sin_11TE: torch.Tensor) -> torch.Tensor:
    rotary_dim, half = cos_11TE.shape[-1], cos_11TE.shape[-1] // 2
    # Written half by half, without the copy of swapped halves that `rotate_half` of transformers allocates.
    result = torch.empty_like(x_1HTE)
    cos, sin = cos_11TE[..., :half], sin_11TE[..., :half]
    first, second = x_1HTE[..., :half], x_1HTE[..., half:rotary_dim]
    torch.mul(first, cos, out=result[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=result[..., half:rotary_dim]).addcmul_(first, sin)
    if rotary_dim < x_1HTE.shape[-1]:  # partial rotary embedding: the rest of a head has no position
        result[..., rotary_dim:] = x_1HTE[..., rotary_dim:]
    return result


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns query and key with rotary embeddings, a replacement of `apply_rotary_pos_emb` of transformers."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotate.apply(query, cos, sin), Rotate.apply(key, cos, sin)
