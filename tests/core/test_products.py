# SPDX-License-Identifier: Apache-2.0
"""Both libraries give the same products."""

from __future__ import annotations

import pytest
import torch

from oumi.core import host
from oumi.core.products import backward_product, forward_product, product


@pytest.mark.parametrize("num_rows", [1, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_torch_by_either_library(num_rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x, gradient = (torch.randn(*shape).to(dtype) for shape in ((50, 16), (num_rows, 16), (num_rows, 50)))
    torch.testing.assert_close(forward_product(x, weight), x @ weight.t())
    torch.testing.assert_close(backward_product(gradient, weight), gradient @ weight)
    for by_onednn in (True, False) if dtype == torch.float32 else (False,):
        torch.testing.assert_close(product(x, weight.t(), by_onednn), x @ weight.t())
        torch.testing.assert_close(product(gradient, weight, by_onednn), gradient @ weight)


def test_a_wrong_product_is_an_error_of_either_library() -> None:
    for by_onednn in (True, False):
        with pytest.raises(RuntimeError, match=r"shape|dim|size"):
            product(torch.randn(4, 3), torch.randn(5, 6), by_onednn)


def test_the_choice_goes_by_the_maker_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    host.multiplies_faster_by_onednn.cache_clear()
    assert host.multiplies_faster_by_onednn() is ("AMD" in host.describe_host().device_name)
    monkeypatch.setenv("OUMI_WITHOUT", "products")
    host.multiplies_faster_by_onednn.cache_clear()
    assert not host.multiplies_faster_by_onednn()
    monkeypatch.undo()
    host.multiplies_faster_by_onednn.cache_clear()
