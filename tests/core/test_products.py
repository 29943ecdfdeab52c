# SPDX-License-Identifier: Apache-2.0
"""Both libraries give the same products."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from oumi.core import host
from oumi.core.products import backward_product, forward_product


@pytest.fixture(params=["AuthenticAMD", "GenuineIntel"])
def is_amd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(host, "_cpuinfo", lambda: (f"vendor_id : {request.param}",))
    host.multiplies_faster_by_onednn.cache_clear()
    yield request.param == "AuthenticAMD"
    host.multiplies_faster_by_onednn.cache_clear()


@pytest.mark.parametrize("num_rows", [1, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_torch_by_either_library(num_rows: int, dtype: torch.dtype, is_amd: bool) -> None:
    torch.manual_seed(0)
    weight, x, gradient = (torch.randn(*shape).to(dtype) for shape in ((50, 16), (num_rows, 16), (num_rows, 50)))
    assert host.multiplies_faster_by_onednn() is is_amd
    torch.testing.assert_close(forward_product(x, weight), x @ weight.t())
    torch.testing.assert_close(backward_product(gradient, weight), gradient @ weight)


def test_the_choice_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, is_amd: bool) -> None:
    monkeypatch.setenv("OUMI_WITHOUT", "products")
    assert is_amd in (True, False)
    assert not host.multiplies_faster_by_onednn()
