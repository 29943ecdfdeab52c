# SPDX-License-Identifier: Apache-2.0
"""Products with a weight, by the library that is the fastest for them on this processor.

torch has two for float32 on a CPU: MKL, which `torch.mm` calls, and oneDNN. On AMD's processors oneDNN is faster, by 5
to 15 %, for products whose result is as long as a row of the weight; `benchmarks/products.py` compares the two. Shape
letters: T rows, i inputs, o outputs.
"""

from __future__ import annotations

import os

import torch

from oumi.core import host

_MOST_KEPT = 32
# oneDNN makes code for each size that it meets and keeps it, a megabyte each; more than a few are of use to no step.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_MOST_KEPT))  # read when it multiplies first


def forward_product(x_Ti: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns x W^T [T, o]; autograd does not see it."""
    return _linear(x_Ti, weight_oi) if _prefers_onednn(weight_oi) else x_Ti @ weight_oi.t()


def backward_product(gradient_To: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns gradient W [T, i]; autograd does not see it."""
    return _linear(gradient_To, weight_oi.t()) if _prefers_onednn(weight_oi) else gradient_To @ weight_oi


def _prefers_onednn(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and host.multiplies_faster_by_onednn()


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result
