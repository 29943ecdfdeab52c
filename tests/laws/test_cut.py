# SPDX-License-Identifier: Apache-2.0
"""Law 1: gradients do not depend on how a step is cut, nor on the order inside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oumi.core.batch import Batch
from oumi.core.models.flat import make_flat
from oumi.core.objectives.next_token import next_token_loss
from tests.runs import batches, tiny_rows
from tests.tiny import tiny_llama


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradients_do_not_depend_on_how_a_step_is_cut(
    tmp_path: Path, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    rows = tiny_rows(tmp_path)
    assert relative_error(gradient(batches(rows, size), dtype), gradient(batches(rows, 8), dtype)) < tolerance


def test_gradients_do_not_depend_on_the_order_inside_a_step(tmp_path: Path) -> None:
    rows = tiny_rows(tmp_path)
    turned = gradient(batches(rows[::-1], 3), torch.float64)
    assert relative_error(turned, gradient(batches(rows, 2), torch.float64)) < 1e-12


def test_a_micro_batch_without_targets_changes_nothing(tmp_path: Path) -> None:
    rows = tiny_rows(tmp_path)
    silent = tiny_rows(tmp_path)[0]
    silent.is_target[:] = False
    parts = batches(rows, 4)
    with_silent = gradient([*parts, *batches([silent], 1)], torch.float64)
    assert torch.equal(with_silent, gradient(parts, torch.float64))


def gradient(micro_batches: list[Batch], dtype: torch.dtype) -> torch.Tensor:
    """Returns the gradient of one step as `take_step` sums it, as one vector."""
    model = make_flat(tiny_llama().to(dtype), None)
    num_terms = sum(batch.num_terms for batch in micro_batches)
    for batch in micro_batches:
        (next_token_loss(model, batch) / num_terms).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
