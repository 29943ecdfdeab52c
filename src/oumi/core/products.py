# SPDX-License-Identifier: Apache-2.0
"""Products with a weight, by the library that is the fastest for them on this processor.

torch has two for float32 on a CPU: MKL, which `torch.mm` calls, and oneDNN. On AMD's processors oneDNN is faster, by 5
to 15 %, for products whose result is as long as a row of the weight; `benchmarks/products.py` compares the two. Shape
letters: T rows, i inputs, o outputs of a layer.
"""

from __future__ import annotations

import torch

from oumi.core import host


def forward_product(x_Ti: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns x W^T [T, o]; autograd does not see it."""
    return product(x_Ti, weight_oi.t(), _prefers_onednn(x_Ti))


def backward_product(gradient_To: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns gradient W [T, i]; autograd does not see it."""
    return product(gradient_To, weight_oi, _prefers_onednn(gradient_To))


def product(x_Ta: torch.Tensor, weight_ab: torch.Tensor, by_onednn: bool) -> torch.Tensor:
    """Returns x W [T, b], by oneDNN if asked and if it has the memory for its code."""
    if by_onednn:
        try:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_Ta, weight_ab.t(), None, "none", [], "")
            return result
        except RuntimeError as error:
            if "could not create a primitive" not in str(error):
                raise
    return x_Ta @ weight_ab


def _prefers_onednn(x: torch.Tensor) -> bool:
    is_float = x.dtype == torch.float32 and x.device.type == "cpu"
    return is_float and host.multiplies_faster_by_onednn() and torch.backends.mkldnn.is_available()
