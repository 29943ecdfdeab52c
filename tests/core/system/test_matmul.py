# SPDX-License-Identifier: Apache-2.0
"""Both libraries give the same products."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from oumi.core.system import host
from oumi.core.system.matmul import (
    backward_product,
    forward_product,
    prefers_onednn_for_gradient,
    product,
    weight_product,
)


@pytest.mark.parametrize("size", [16, 1024])
@pytest.mark.parametrize("num_rows", [1, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_torch_by_either_library(num_rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x, gradient = (torch.randn(*shape).to(dtype) for shape in ((50, size), (num_rows, size), (num_rows, 50)))
    close = partial(torch.testing.assert_close, **({} if size == 16 else {"rtol": 1e-2, "atol": 1e-3}))
    close(forward_product(x, weight), x @ weight.t())
    close(backward_product(gradient, weight), gradient @ weight)
    close(weight_product(gradient, x), gradient.t() @ x)
    close(weight_product(x, gradient), x.t() @ gradient)
    for by_onednn in (True, False) if dtype == torch.float32 else (False,):
        close(product(x, weight.t(), by_onednn), x @ weight.t())
        close(product(gradient, weight, by_onednn), gradient @ weight)
        close(product(gradient.t(), x, by_onednn), gradient.t() @ x)


@pytest.mark.parametrize("of_columns", [slice(0, 40), slice(8, 48)])
def test_parts_of_tensors_are_multiplied_as_whole_ones(of_columns: slice) -> None:
    """As where a gradient comes from what a layer's result was joined to."""
    torch.manual_seed(0)
    x, wide, repeated = torch.randn(30, 1024), torch.randn(30, 60), torch.randn(40, 1).expand(40, 1024)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-3)
    for part in (wide[:, of_columns], torch.randn(30, 1).expand(30, 40)):
        close(weight_product(part, x), part.t() @ x)
        close(weight_product(x, part), x.t() @ part)
        close(backward_product(part, repeated), part @ repeated)


def test_a_wrong_product_is_an_error_of_either_library() -> None:
    for by_onednn in (True, False):
        with pytest.raises(RuntimeError, match=r"shape|dim|size"):
            product(torch.randn(4, 3), torch.randn(5, 6), by_onednn)


def test_the_choice_goes_by_the_maker_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_choice()
    assert host.multiplies_faster_by_onednn() is ("AMD" in host.describe_host().device_name)
    is_wide = host.multiplies_faster_by_onednn() and "avx512f" in host.cpu_flags()
    assert prefers_onednn_for_gradient(torch.zeros(1), 1 << 20) is is_wide
    assert not prefers_onednn_for_gradient(torch.zeros(1), 1 << 10), "code takes longer to make than it saves"
    assert not prefers_onednn_for_gradient(torch.zeros(1, dtype=torch.float64), 1 << 20)
    monkeypatch.setenv("OUMI_WITHOUT", "products")
    forget_the_choice()
    assert not host.multiplies_faster_by_onednn()
    assert not prefers_onednn_for_gradient(torch.zeros(1), 1 << 20)
    monkeypatch.undo()
    forget_the_choice()


def forget_the_choice() -> None:
    host.multiplies_faster_by_onednn.cache_clear()
    host.multiplies_twice_as_fast_by_onednn.cache_clear()
