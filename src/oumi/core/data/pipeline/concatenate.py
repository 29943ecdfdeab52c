# SPDX-License-Identifier: Apache-2.0
"""Documents end to end, cut into rows of a fixed length, as in the pretraining of language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from oumi.core.data.ledger import Counts
from oumi.core.data.store.token_table import TokenTable
from oumi.core.errors import DataError
from oumi.core.types.example import Example


@dataclass(frozen=True)
class Concatenation:
    """How documents are concatenated."""

    length: int
    """Tokens of a row."""
    skip_last: bool
    """Drop the rest at the end that does not fill a row."""


class ConcatenatedTable:
    """The documents of a table end to end, cut into rows; they do not attend to each other.

    Nothing is copied: a row is located by the ends of the documents.
    """

    def __init__(self, table: TokenTable, concatenation: Concatenation) -> None:
        """Concatenates documents that are not truncated; raises DataError if they do not fill a row."""
        self.documents = table
        """The documents before they are cut into rows."""
        self._length = concatenation.length
        # Where each document ends in the concatenation.
        self._ends = np.cumsum(table.lengths())
        total = int(self._ends[-1]) if len(self._ends) else 0
        self._num_tokens = total - total % concatenation.length if concatenation.skip_last else total
        if total and not self._num_tokens:
            raise DataError(
                f"its {total:,} tokens do not fill one row of dataset_kwargs.seq_length {concatenation.length:,}; "
                "dataset_kwargs.skip_last: false keeps them as a shorter row"
            )

    def __len__(self) -> int:
        return -(-self._num_tokens // self._length)  # rounded up: the last row may be shorter

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)  # also ends a loop over the rows
        first = index * self._length
        last = min(first + self._length, self._num_tokens)
        # "right": a document that ends at `first` has no token in the row.
        documents = range(int(np.searchsorted(self._ends, first, "right")), int(np.searchsorted(self._ends, last)) + 1)
        return self.documents.span(first, last, documents, self._ends)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each row [R]."""
        lengths = np.full(len(self), self._length, dtype=np.int64)
        if len(self):
            lengths[-1] = self._num_tokens - (len(self) - 1) * self._length
        return lengths

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns the number of trained tokens of each row [R]; documents train all tokens."""
        return self.lengths()

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self.documents.highest_token

    def account(self, counts: Counts) -> Counts:
        """Returns the counts of the documents, with the tokens that are dropped at the end as cut off."""
        counts = replace(counts, examples=len(self))
        if len(self._ends):
            # A document of which nothing is left counts as truncated, like the one that is cut.
            counts.cut(int((self._ends > self._num_tokens).sum()), int(self._ends[-1]) - self._num_tokens)
        return counts


def join_pieces(pieces: Sequence[Example]) -> Example:
    """Returns pieces of documents as one row; they do not attend to each other."""
    if len(pieces) == 1:
        return pieces[0]
    starts = np.cumsum([0, *(len(piece.tokens) for piece in pieces[:-1])]).tolist()
    return Example(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.is_target for piece in pieces]),
        pieces[0].source,
        tuple(starts),
        tuple(piece.source for piece in pieces[1:]),
    )
