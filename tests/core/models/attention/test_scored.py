# SPDX-License-Identifier: Apache-2.0
"""Attention in blocks of queries is attention by its definition, and keeps no scores."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from oumi.core.models.attention.interface import _fused, _scored
from oumi.core.models.attention.scored import Scoring, attention_by_definition, blocks, scored_attention
from oumi.core.plan.step_sizes import block_queries

LENGTH = 150
"""More than two blocks."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "capped": {"softcap": 2.0},
    "sinks": {"has_sinks": True},
    "window": {"softcap": 2.0, "sliding_window": 20},
    "wide window": {"sliding_window": 130, "has_sinks": True},
    "no window": {"sliding_window": 0, "softcap": 2.0},
    "window of one": {"sliding_window": 1, "has_sinks": True},
    "all": {"softcap": 2.0, "sliding_window": 70, "has_sinks": True, "scaling": 0.7},
}


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    scoring = Scoring(scale, settings.get("softcap"), settings.get("sliding_window") or None)
    return attention_by_definition(query, key, value, settings.get("s_aux"), scoring)


def inputs(dtype: torch.dtype, num_documents: int = 2, length: int = LENGTH, size: int = 16) -> list[torch.Tensor]:
    """Returns queries of six heads, keys and narrower values of two, and a sink for each head."""
    torch.manual_seed(0)
    heads = [torch.randn(num_documents, count, length, width) for count, width in ((6, size), (2, size), (2, size - 2))]
    return [tensor.to(dtype).requires_grad_() for tensor in (*heads, torch.randn(6))]


def gradients(attend: Any, tensors: list[torch.Tensor], settings: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Returns the attention, and the gradients of what it was given."""
    query, key, value, sinks = tensors
    leaves = tensors if settings.get("has_sinks") else tensors[:3]
    out = attend(query, key, value, {**settings, "s_aux": sinks if settings.get("has_sinks") else None})
    torch.manual_seed(1)
    return out, *torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=out.dtype))


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_of_queries_give_attention_and_gradients_by_definition(
    name: str, dtype: torch.dtype, close: float
) -> None:
    tensors = inputs(dtype)
    results = gradients(_scored, tensors, SETTINGS[name])
    references = gradients(by_definition, tensors, SETTINGS[name])
    for tensor, other in zip(results, references, strict=True):
        assert (tensor - other).norm() <= close * other.norm()


@pytest.mark.parametrize("scoring", [Scoring(0.5), Scoring(0.5, softcap=1.5), Scoring(0.5, 1.5, window=3)])
def test_gradients_are_those_of_differences(scoring: Scoring) -> None:
    tensors = inputs(torch.float64, 1, length=7, size=3)
    assert torch.autograd.gradcheck(lambda *parts: scored_attention(*parts, scoring), tensors)


@pytest.mark.parametrize("name", SETTINGS)
def test_attention_that_is_computed_again_gives_the_same_gradients(name: str) -> None:
    tensors = inputs(torch.float32)
    results = gradients(partial(checkpoint, _scored, use_reentrant=False), tensors, SETTINGS[name])
    references = gradients(_scored, tensors, SETTINGS[name])
    assert all(torch.equal(tensor, other) for tensor, other in zip(results, references, strict=True))


def test_nothing_larger_than_the_queries_waits_for_the_backward_pass() -> None:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    query, key, value, sinks = inputs(torch.float32, 1, length=1000)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _scored(query, key, value, {"softcap": 2.0, "s_aux": sinks}).sum().backward()
    assert max(kept) == query.numel()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("window", [None, 1, 128, 4096])
def test_a_block_of_scores_is_no_larger_than_what_is_held(device: str, window: int | None) -> None:
    heads, length = 64, 8192
    queries = block_queries(heads, length, window, device)
    widest = max(block.keys.stop - block.keys.start for block in blocks(length, window, queries))
    fewest = 64 * heads * (widest if window is None else 64 + window)
    assert heads * queries * widest <= max({"cpu": 1 << 19}.get(device, 1 << 25), fewest)


@pytest.mark.parametrize("window", [1, 100, 256, 300, 599, 600])
def test_a_window_in_blocks_is_that_of_one_mask(window: int) -> None:
    tensors = inputs(torch.float32, 1, length=600)
    settings = {"sliding_window": window}
    results, references = (gradients(attend, tensors, settings) for attend in (_fused, by_definition))
    for tensor, other in zip(results, references, strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-5, rtol=1e-4)


def test_dropped_weights_are_drawn_anew_and_keep_their_mean() -> None:
    query, key, value, _sinks = inputs(torch.float32, 1, length=40)
    settings = {"softcap": 2.0, "dropout": 0.5}
    with torch.no_grad():
        drawn = torch.stack([_scored(query, key, value, settings) for _ in range(400)])
        expected = _scored(query, key, value, {"softcap": 2.0})
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - expected).norm() < 0.1 * expected.norm()
