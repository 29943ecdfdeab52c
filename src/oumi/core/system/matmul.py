# SPDX-License-Identifier: Apache-2.0
"""Matrix products with a weight, by the library that is the fastest for them on this processor.

For float32 on a CPU, torch has MKL, which `torch.mm` calls, and oneDNN. On AMD processors, oneDNN is 5 to 15 % faster
for the forward pass and for the gradient of the input. On those with AVX-512, which MKL uses on Intel only, it is about
twice as fast for these, and 1.4 to 1.9 times as fast for the gradient of the weight; `benchmarks/products.py` compares
the two. Shape letters: T rows, i inputs, o outputs of a layer.
"""

from __future__ import annotations

import torch

from oumi.core.system import host

_MIN_WEIGHTS = 1 << 15
"""Minimum elements of a weight for oneDNN, which compiles code for every new number of rows in 1 to 2 ms."""


def forward_product(x_Ti: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns x W^T [T, o], without a gradient."""
    return product(x_Ti, weight_oi.t(), prefers_onednn(weight_oi, weight_oi.numel()))


def backward_product(gradient_To: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns gradient W [T, i], without a gradient."""
    return product(gradient_To, weight_oi, prefers_onednn(weight_oi, weight_oi.numel()))


def weight_product(gradient_To: torch.Tensor, x_Ti: torch.Tensor) -> torch.Tensor:
    """Returns gradient^T x [o, i], without a gradient."""
    # oneDNN copies its first operand, so that is the narrower one.
    num_outputs, num_inputs = gradient_To.shape[1], x_Ti.shape[1]
    if not prefers_onednn_for_gradient(x_Ti, num_outputs * num_inputs):
        return gradient_To.t() @ x_Ti
    if num_outputs > num_inputs:
        return product(x_Ti.t(), gradient_To, by_onednn=True).t()
    return product(gradient_To.t(), x_Ti, by_onednn=True)


def prefers_onednn_for_gradient(like: torch.Tensor, num_weights: int) -> bool:
    """Returns True if oneDNN is also faster for the gradient of a weight with `num_weights` elements."""
    return host.multiplies_twice_as_fast_by_onednn() and prefers_onednn(like, num_weights)


def prefers_onednn(like: torch.Tensor, num_weights: int) -> bool:
    """Returns True if oneDNN is faster for products with a weight of `num_weights` elements, including compilation.

    `like` has the dtype and device of the product.
    """
    # The decision is also made for models on the meta device, before they move to the CPU.
    is_float = like.dtype == torch.float32 and like.device.type in ("cpu", "meta")
    is_faster = is_float and num_weights >= _MIN_WEIGHTS and host.multiplies_faster_by_onednn()
    return is_faster and torch.backends.mkldnn.is_available()


def product(x_Ta: torch.Tensor, weight_ab: torch.Tensor, by_onednn: bool) -> torch.Tensor:
    """Returns x W [T, b], by oneDNN if `by_onednn` and if it can allocate memory for its code."""
    if by_onednn:
        if not (weight_ab.is_contiguous() or weight_ab.t().is_contiguous()):
            weight_ab = weight_ab.contiguous()  # oneDNN is a thousand times slower with other strides
        try:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_Ta, weight_ab.t(), None, "none", [], "")
            return result
        except RuntimeError as error:  # raised when oneDNN cannot allocate memory for its code
            if "could not create a primitive" not in str(error):
                raise
    return x_Ta @ weight_ab
