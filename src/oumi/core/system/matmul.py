# SPDX-License-Identifier: Apache-2.0
"""Products with a weight, by the library that is the fastest for them on this processor.

torch has two for float32 on a CPU: MKL, which `torch.mm` calls, and oneDNN. On AMD's processors oneDNN is faster, by 5
to 15 %, for products whose result is as long as a row of the weight. Where they have AVX-512, which MKL leaves to those
of Intel, it is about twice as fast for these, and 1.4 to 1.9 times for the gradient of the weight;
`benchmarks/products.py` compares the two. Shape letters: T rows, i inputs, o outputs of a layer.
"""

from __future__ import annotations

import torch

from oumi.core.system import host

_FEWEST = 1 << 15
"""Numbers of a weight; for each new number of rows oneDNN makes code, which takes 1 to 2 ms."""


def forward_product(x_Ti: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns x W^T [T, o]; autograd does not see it."""
    return product(x_Ti, weight_oi.t(), prefers_onednn(weight_oi, weight_oi.numel()))


def backward_product(gradient_To: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns gradient W [T, i]; autograd does not see it."""
    return product(gradient_To, weight_oi, prefers_onednn(weight_oi, weight_oi.numel()))


def weight_product(gradient_To: torch.Tensor, x_Ti: torch.Tensor) -> torch.Tensor:
    """Returns gradient^T x [o, i]; autograd does not see it. oneDNN gets the narrower one first, as it copies that."""
    num_outputs, num_inputs = gradient_To.shape[1], x_Ti.shape[1]
    if not prefers_onednn_for_gradient(x_Ti, num_outputs * num_inputs):
        return gradient_To.t() @ x_Ti
    if num_outputs > num_inputs:
        return product(x_Ti.t(), gradient_To, by_onednn=True).t()
    return product(gradient_To.t(), x_Ti, by_onednn=True)


def prefers_onednn_for_gradient(like: torch.Tensor, num_weights: int) -> bool:
    """Returns True where oneDNN is the faster one for the gradient of a weight, too."""
    return host.multiplies_twice_as_fast_by_onednn() and prefers_onednn(like, num_weights)


def prefers_onednn(like: torch.Tensor, num_weights: int) -> bool:
    """Returns True where oneDNN is the faster one for the products with a weight, its making of code included."""
    # What a layer will do is also decided for models that are not on their device yet.
    is_float = like.dtype == torch.float32 and like.device.type in ("cpu", "meta")
    is_faster = is_float and num_weights >= _FEWEST and host.multiplies_faster_by_onednn()
    return is_faster and torch.backends.mkldnn.is_available()


def product(x_Ta: torch.Tensor, weight_ab: torch.Tensor, by_onednn: bool) -> torch.Tensor:
    """Returns x W [T, b], by oneDNN if `by_onednn` and if it has memory for its code."""
    if by_onednn:
        if not (weight_ab.is_contiguous() or weight_ab.t().is_contiguous()):
            weight_ab = weight_ab.contiguous()  # oneDNN takes a thousand times as long where there are gaps
        try:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_Ta, weight_ab.t(), None, "none", [], "")
            return result
        except RuntimeError as error:  # oneDNN keeps its code in memory of its own, which may be used up
            if "could not create a primitive" not in str(error):
                raise
    return x_Ta @ weight_ab
