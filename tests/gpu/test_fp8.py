# SPDX-License-Identifier: Apache-2.0
"""Products in 8 bits by the kernels of a GPU, for a number of tokens that suits none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.acceleration.fp8 import use_fp8
from oumi.core.system.host import describe_host
from tests.core.models.acceleration.test_fp8 import LARGE
from tests.gpu.test_attention import gradient
from tests.laws.test_cut import relative_error
from tests.runs import batches, tiny_rows
from tests.tiny import tiny_llama


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp", "tensorwise"])
def test_gradients_are_those_of_bfloat16_but_for_8_bits_of_rounding(tmp_path: Path, recipe: str) -> None:
    pytest.importorskip("torchao")
    if not describe_host().has_fp8:
        pytest.skip("the GPU multiplies no 8-bit floats")
    rows = tiny_rows(tmp_path)
    gradients = []
    for is_narrow in (False, True):
        inner = tiny_llama(**LARGE).train().to("cuda").bfloat16()
        model = make_flat(inner, None)
        if is_narrow:
            use_fp8(inner, recipe)
            compile_layers(inner)
        gradients.append([gradient(model, batches(rows, size)) for size in (8, 3)])
    (in_bfloat16, _), (in_fp8, cut) = gradients
    assert 1e-3 < relative_error(in_fp8, in_bfloat16) < 0.1
    assert relative_error(cut, in_fp8) < (0.1 if recipe == "tensorwise" else 0.02)
