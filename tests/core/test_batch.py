# SPDX-License-Identifier: Apache-2.0
"""Documents end to end, each predicting its own tokens only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oumi.core.batch import IGNORED, collate
from oumi.core.types.example import Example, Source


def example(tokens: list[int], is_target: list[bool], line: int = 0) -> Example:
    return Example(np.array(tokens, np.int32), np.array(is_target), Source("rows", "rows.jsonl", line))


FIRST = example([5, 6, 7], [False, True, True], 1)
SECOND = example([8, 9], [True, True], 2)


def test_a_batch_is_a_stream_with_positions_and_offsets() -> None:
    batch = collate([FIRST, SECOND])
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.offsets == (0, 3, 5)
    assert [source.line for source in batch.sources] == [1, 2]
    assert batch.num_tokens == 5


def test_a_target_is_the_next_token_and_never_that_of_the_next_document() -> None:
    batch = collate([FIRST, SECOND])
    assert batch.targets.tolist() == [6, 7, IGNORED, 9, IGNORED]
    assert batch.trained.tolist() == [0, 1, 3]
    assert batch.num_targets == 3


def test_documents_can_be_separated_again() -> None:
    for part, alone in zip(collate([FIRST, SECOND]).documents(), (FIRST, SECOND), strict=True):
        expected = collate([alone])
        for name in ("tokens", "positions", "targets", "trained"):
            assert torch.equal(getattr(part, name), getattr(expected, name)), name
        assert (part.offsets, part.sources) == (expected.offsets, expected.sources)


def test_a_row_of_a_single_token_trains_nothing() -> None:
    assert collate([example([5], [True])]).num_targets == 0


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 9])
def test_a_batch_is_cut_between_documents_and_nothing_is_lost(num_parts: int) -> None:
    rows = [example(list(range(3, 3 + n)), [True] * n, n) for n in (9, 2, 3, 7, 4, 8, 2)]
    batch = collate(rows)
    parts = batch.cut(num_parts)
    assert torch.cat([part.tokens for part in parts]).tolist() == batch.tokens.tolist()
    assert sum(part.num_targets for part in parts) == batch.num_targets
    assert [source for part in parts for source in part.sources] == list(batch.sources)
    first = 0
    for part in parts:  # each is what its rows would be alone
        alone = collate(rows[first : first + len(part.sources)])
        first += len(part.sources)
        for name in ("tokens", "positions", "targets", "trained"):
            assert torch.equal(getattr(part, name), getattr(alone, name))
        assert part.offsets == alone.offsets
        assert part.num_tokens <= batch.num_tokens / num_parts + max(len(row.tokens) for row in rows)


def test_a_single_document_is_not_cut() -> None:
    assert len(collate([FIRST]).cut(8)) == 1
