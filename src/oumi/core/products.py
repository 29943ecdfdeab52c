# SPDX-License-Identifier: Apache-2.0
"""Products with a weight, by the library that is the fastest for them on this processor.

torch has two for float32 on a CPU: MKL, which `torch.mm` calls, and oneDNN. On AMD's processors oneDNN is faster, by 5
to 15 %, for products whose result is as long as a row of the weight; `benchmarks/products.py` compares the two. Shape
letters: T rows, i inputs, o outputs of a layer.
"""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from oumi.core import host

_MOST_KEPT = 32
# oneDNN makes code for each size that it meets and keeps it, a megabyte each; more than a few are of use to no step.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_MOST_KEPT))  # read when it multiplies first


def forward_product(x_Ti: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns x W^T [T, o]; autograd does not see it."""
    return _product(x_Ti, weight_oi.t())


def backward_product(gradient_To: torch.Tensor, weight_oi: torch.Tensor) -> torch.Tensor:
    """Returns gradient W [T, i]; autograd does not see it."""
    return _product(gradient_To, weight_oi)


def _product(x_Ta: torch.Tensor, weight_ab: torch.Tensor) -> torch.Tensor:
    if x_Ta.dtype == torch.float32 and x_Ta.device.type == "cpu" and host.multiplies_faster_by_onednn():
        with suppress(RuntimeError):  # it has no memory for its code
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_Ta, weight_ab.t(), None, "none", [], "")
            return result
    return x_Ta @ weight_ab
