# SPDX-License-Identifier: Apache-2.0
"""Attention of all documents by one kernel, as far as a CPU can tell: its masks, and what it computes."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from oumi.core.models.attention.flex import BLOCK, _works, attention_of_documents, documents_mask, takes_flex
from oumi.core.models.attention.scored import Scoring, scored_attention

CPU = torch.device("cpu")
DOCUMENTS = [(7, 300, 129, 1, 64), (256, 256), (5,), (BLOCK, 3 * BLOCK), (700,)]
WINDOWS = [None, 1, 50, 128, 400]


def offsets_of(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return (0, *accumulate(lengths))


def visible_pairs(offsets: tuple[int, ...], window: int | None) -> np.ndarray:
    results = np.zeros((offsets[-1], offsets[-1]), dtype=np.bool_)
    for start, stop in pairwise(offsets):
        for query in range(start, stop):
            results[query, max(start, 0 if window is None else query - window + 1) : query + 1] = True
    return results


def visible_to(mask: BlockMask, length: int, *, is_turned: bool = False) -> np.ndarray:
    """Returns what a kernel takes into account: blocks as a whole, and blocks in part by the rule of the mask."""
    lists = (
        [(mask.q_num_blocks, mask.q_indices, False), (mask.full_q_num_blocks, mask.full_q_indices, True)]
        if is_turned
        else [(mask.kv_num_blocks, mask.kv_indices, False), (mask.full_kv_num_blocks, mask.full_kv_indices, True)]
    )
    places = torch.arange(length)
    rule = mask.mask_mod(0, 0, places[:, None], places[None, :]).numpy()
    results = np.zeros((length, length), dtype=np.bool_)
    for counts, orders, is_full in lists:
        assert counts is not None
        assert orders is not None
        for row, count in enumerate(counts[0, 0]):
            for column in orders[0, 0, row, : int(count)]:
                query, key = (int(column), row) if is_turned else (row, int(column))
                part = (slice(query * BLOCK, (query + 1) * BLOCK), slice(key * BLOCK, (key + 1) * BLOCK))
                assert not results[part].any(), "a block that stands in two lists is counted twice"
                results[part] = True if is_full else rule[part]
    return results


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", DOCUMENTS)
def test_a_mask_shows_each_token_its_own_document_and_window(lengths: tuple[int, ...], window: int | None) -> None:
    offsets = offsets_of(lengths)
    mask = documents_mask(offsets, window, CPU)
    expected = visible_pairs(offsets, window)
    assert (visible_to(mask, offsets[-1]) == expected).all()
    assert (visible_to(mask, offsets[-1], is_turned=True) == expected).all(), "the backward pass goes by keys"


def test_blocks_that_nobody_sees_are_left_out() -> None:
    mask = documents_mask(offsets_of((1024, 1024)), 128, CPU)
    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) == 8 + 7 + 8 + 7  # type: ignore[union-attr]


@pytest.mark.sample(1)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_attention_is_that_of_each_document(window: int | None, softcap: float | None, has_sinks: bool) -> None:
    torch.manual_seed(0)
    lengths = (7, 300, 129, 1, 64)
    parts = [torch.randn(1, heads, sum(lengths), 16) for heads in (4, 2, 2)]
    sinks = torch.randn(4) if has_sinks else None
    scoring = Scoring(0.3, softcap, window)
    cap = None if softcap is None else torch.tensor(softcap)
    mask = documents_mask(offsets_of(lengths), window, CPU)
    attend = torch.compile(attention_of_documents, dynamic=True, fullgraph=True, backend="aot_eager")
    results = attend(tuple(parts), sinks, mask, cap, scoring.scale)
    split = zip(*(part.split(lengths, dim=2) for part in parts), strict=True)
    expected = torch.cat([scored_attention(*document, sinks, scoring) for document in split], dim=2)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_cannot_be_made_is_reported_within_gradient_checkpointing_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _works.cache_clear()
    results = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        results.append(_works(16, torch.bfloat16, True, 5.0, CPU))
        return (x * x).sin()

    x = torch.randn(4, requires_grad=True)
    state = torch.get_rng_state()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert results[0] is False
    assert caplog.text.count("a block of queries at a time, which takes longer: FlexAttention: ") == 1
    _works.cache_clear()


def test_a_cpu_goes_without_it() -> None:
    part = torch.randn(1, 2, 300, 16, dtype=torch.bfloat16)
    assert not takes_flex((part, part, part), None, Scoring(1.0, 20.0))
