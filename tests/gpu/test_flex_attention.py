# SPDX-License-Identifier: Apache-2.0
"""Soft-capped scores and attention sinks by one kernel: gradients, and how often it is made."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from oumi.core.models.attention.flex import documents_mask, flex_scored_attention, takes_flex
from oumi.core.models.attention.scored import Scoring, scored_attention

BATCHES = [(700, 300, 24), (129,), (512, 512), (3, 1, 200, 1500, 77)]
SCORINGS = {
    "capped": (Scoring(0.125, 20.0), False),
    "capped within windows": (Scoring(0.125, 20.0, 100), False),
    "sinks": (Scoring(0.125), True),
    "sinks within windows": (Scoring(0.125, None, 128), True),
}


def drawn(num_tokens: int, size: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    heads = [torch.randn(1, count, num_tokens, size, device="cuda") for count in (8, 2, 2)]
    return [*heads, torch.randn(8, device="cuda")]


def results(attend: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in inputs]
    out = attend(*leaves)
    torch.manual_seed(1)
    grads = torch.autograd.grad(out, leaves, torch.randn(out.shape, device="cuda").to(out.dtype), allow_unused=True)
    return [out, *(tensor for tensor in grads if tensor is not None)]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", SCORINGS)
def test_gradients_are_those_of_each_document_and_one_kernel_takes_all_batches(name: str, size: int) -> None:
    torch._dynamo.reset()
    scoring, has_sinks = SCORINGS[name]
    kernels = []
    for lengths in BATCHES:
        inputs = drawn(sum(lengths), size)

        def separately(query: Any, key: Any, value: Any, sinks: Any, lengths: tuple[int, ...] = lengths) -> Any:
            split = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
            return torch.cat(
                [scored_attention(*document, sinks if has_sinks else None, scoring) for document in split],
                dim=2,
            )

        def by_flex(query: Any, key: Any, value: Any, sinks: Any, lengths: tuple[int, ...] = lengths) -> Any:
            assert takes_flex((query, key, value), sinks if has_sinks else None, scoring)
            mask = documents_mask((0, *accumulate(lengths)), scoring.window, query.device)
            return flex_scored_attention((query, key, value), sinks if has_sinks else None, mask, scoring)

        expected = results(separately, inputs, torch.float32)
        actual = results(by_flex, inputs, torch.bfloat16)
        assert len(actual) == len(expected) == (5 if has_sinks else 4)
        for one, reference in zip(actual, expected, strict=True):
            assert float((one.float() - reference).norm() / reference.norm()) < 0.02
        kernels.append(counters["stats"]["unique_graphs"])
    assert kernels[-1] == kernels[1], "the second batch may differ in kind from the first, no further ones"
