# SPDX-License-Identifier: Apache-2.0
"""Documents end to end: rows of one length, nothing lost, and none learned from another document."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.batch import collate
from oumi.core.data.ledger import Counts
from oumi.core.data.pipeline.concatenate import ConcatenatedTable, Concatenation
from oumi.core.data.store.token_table import TokenTable
from oumi.core.errors import DataError
from oumi.core.types.example import Encoded, Example, Source
from tests.runs import table_of

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def documents(lengths: list[int]) -> list[Example]:
    """Returns texts of these lengths; each token is told by its document and place."""
    return [
        Example(np.arange(n, dtype=np.int32) + 100 * i, np.ones(n, bool), Source("set", "x.txt", i + 1))
        for i, n in enumerate(lengths)
    ]


def table(lengths: list[int]) -> TokenTable:
    return table_of(documents(lengths))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 50))
def test_rows_are_the_documents_end_to_end(lengths: list[int], length: int) -> None:
    joined = ConcatenatedTable(table(lengths), Concatenation(length, skip_last=False))
    rows = [joined[i] for i in range(len(joined))]
    tokens = np.concatenate([document.tokens for document in documents(lengths)])
    assert np.array_equal(np.concatenate([row.tokens for row in rows]), tokens)
    assert [len(row.tokens) for row in rows] == joined.lengths().tolist()
    assert all(len(row.tokens) == length for row in rows[:-1])
    for row in rows:
        for part in row.documents():
            assert set(part.tokens // 100) == {part.source.line - 1}, "each piece is of one document, and names it"
    assert joined.highest_token == tokens.max()


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 50))
def test_what_is_left_at_the_end_is_dropped_and_counted(lengths: list[int], length: int) -> None:
    total = sum(lengths)
    if total < length:
        with pytest.raises(DataError, match="do not fill one row"):
            ConcatenatedTable(table(lengths), Concatenation(length, skip_last=True))
        return
    joined = ConcatenatedTable(table(lengths), Concatenation(length, skip_last=True))
    assert len(joined) == total // length
    assert set(joined.lengths().tolist()) == {length}
    counts = Counts()
    for document in documents(lengths):
        counts.accept(Encoded((document,)))
    now = joined.account(counts)
    assert now.read == now.trained + now.truncated == len(lengths)
    assert (now.num_tokens, now.cut_tokens) == (len(joined) * length, total % length)
    assert now.truncated == sum(end > len(joined) * length for end in np.cumsum(lengths))
    assert now == replace(now, num_target_tokens=now.num_tokens, cut_target_tokens=now.cut_tokens)


def test_no_document_predicts_the_next_one() -> None:
    joined = ConcatenatedTable(table([3, 4, 5]), Concatenation(6, skip_last=False))
    batch = collate([joined[0], joined[1]])
    assert batch.tokens.tolist() == [0, 1, 2, 100, 101, 102, 103, 200, 201, 202, 203, 204]
    assert batch.targets.tolist() == [1, 2, -100, 101, 102, -100, -100, 201, 202, 203, 204, -100]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert [source.line for source in batch.sources] == [1, 2, 2, 3]


def test_a_row_beyond_the_last_is_an_error() -> None:
    joined = ConcatenatedTable(table([3, 4]), Concatenation(4, skip_last=True))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            joined[index]
