# SPDX-License-Identifier: Apache-2.0
"""Law 1: gradients do not depend on how a step is cut, nor on the order inside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from oumi.core.batch import Batch
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.checkpointing import recompute_layers
from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.language_model import LanguageModel
from oumi.core.system.host import describe_host
from oumi.core.train import train
from tests.runs import batches, tiny_config, tiny_rows
from tests.tiny import tiny_llama

PATHS: dict[str, Callable[[Any], object]] = {
    "plain": lambda model: None,
    "fused": fuse_layers,
    "recomputed": lambda model: recompute_layers(model, {"use_reentrant": False}),
    "half_recomputed": lambda model: recompute_layers(model, {"use_reentrant": False, "recompute_num_layers": 1}),
}


@pytest.mark.sample
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gradients_do_not_depend_on_how_a_step_is_cut(
    tmp_path: Path, size: int, dtype: torch.dtype, tolerance: float, path: str
) -> None:
    rows = tiny_rows(tmp_path)
    actual, expected = (gradient(batches(rows, cut), dtype, path) for cut in (size, 8))
    assert relative_error(actual, expected) < tolerance


@pytest.mark.sample(1)
@pytest.mark.parametrize("recomputes", [False, True])
def test_compiled_layers_give_the_gradients_of_plain_ones_however_a_step_is_cut(
    tmp_path: Path, recomputes: bool
) -> None:
    rows = tiny_rows(tmp_path)
    settings = {"use_reentrant": False} if recomputes else None
    expected = gradient(batches(rows, 8), torch.float32)
    inner = tiny_llama().train()
    if settings:
        recompute_layers(inner, settings)
    model = make_flat(inner, None)
    torch._dynamo.reset()
    counters.clear()
    compile_layers(inner, settings)
    for size in (8, 3):
        actual = gradient_of(model, batches(rows, size))
        assert relative_error(actual, expected) < 2e-6
    assert counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize("path", [path for path in PATHS if path != "plain"])
def test_every_path_gives_the_gradients_of_the_plain_one(tmp_path: Path, path: str) -> None:
    parts = batches(tiny_rows(tmp_path), 4)
    assert relative_error(gradient(parts, torch.float32, path), gradient(parts, torch.float32)) < 2e-6


@pytest.mark.skipif(not describe_host().has_bf16, reason="no bfloat16 instructions")
@pytest.mark.parametrize("size", [1, 2, 8])
def test_bfloat16_products_depend_on_the_cut_by_their_rounding_only(tmp_path: Path, size: int) -> None:
    rows = tiny_rows(tmp_path)
    expected = gradient(batches(rows, 8), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradient(batches(rows, size), torch.float32)
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected) < 0.02


def test_micro_batches_left_to_the_plan_give_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name, size, parts in (("auto", "auto", 2), ("given", 4, 4)):
        cut: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        config = tiny_config(tmp_path, output_dir=str(tmp_path / name), max_steps=3, **cut)
        losses.append(train(config).metrics["loss"])
    assert '"micro_batch_rows": 16' in (tmp_path / "auto" / "plan.json").read_text()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


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


def gradient(micro_batches: list[Batch], dtype: torch.dtype, path: str = "plain") -> torch.Tensor:
    """Returns the gradient of one step as `take_step` sums it, as one vector."""
    inner = tiny_llama().to(dtype).train()
    PATHS[path](inner)
    return gradient_of(make_flat(inner, None), micro_batches)


def gradient_of(model: LanguageModel, micro_batches: list[Batch]) -> torch.Tensor:
    model.zero_grad()
    num_terms = sum(batch.num_targets for batch in micro_batches)
    for batch in micro_batches:
        (next_token_loss(model, batch) / num_terms).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
