# SPDX-License-Identifier: Apache-2.0
"""Documents end to end, cut into rows of a fixed length, as language models are pretrained."""

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
    """How documents are joined."""

    length: int
    """Tokens of a row."""
    skip_last: bool
    """What is left at the end, shorter than a row, is dropped."""


class ConcatenatedTable:
    """A table whose documents stand end to end, cut into rows; no document sees another.

    A row is found at once, by where the documents end.
    """

    def __init__(self, table: TokenTable, concatenation: Concatenation) -> None:
        """Takes documents that are not cut, and how they are joined; raises DataError if they fill no row."""
        self.documents = table
        """The documents, each whole."""
        self._length = concatenation.length
        self._ends = np.cumsum(table.lengths())
        total = int(self._ends[-1]) if len(self._ends) else 0
        self._num_tokens = total - total % concatenation.length if concatenation.skip_last else total
        if total and not self._num_tokens:
            raise DataError(
                f"its {total:,} tokens do not fill one row of dataset_kwargs.seq_length {concatenation.length:,}; "
                "dataset_kwargs.skip_last: false keeps them as a shorter row"
            )

    def __len__(self) -> int:
        return -(-self._num_tokens // self._length)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self._length
        last = min(first + self._length, self._num_tokens)
        documents = range(int(np.searchsorted(self._ends, first, "right")), int(np.searchsorted(self._ends, last)) + 1)
        return self.documents.span(first, last, documents, self._ends)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens each row has [R]."""
        lengths = np.full(len(self), self._length, dtype=np.int64)
        if len(self):
            lengths[-1] = self._num_tokens - (len(self) - 1) * self._length
        return lengths

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens of each row are trained [R]: all, as of any document."""
        return self.lengths()

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self.documents.highest_token

    def account(self, counts: Counts) -> Counts:
        """Returns the account of the documents, with what is dropped at the end counted as cut off."""
        made = replace(counts, examples=len(self))
        if len(self._ends):
            made.cut(int((self._ends > self._num_tokens).sum()), int(self._ends[-1]) - self._num_tokens)
        return made


def joined(pieces: Sequence[Example]) -> Example:
    """Returns pieces of documents as one row, in which none sees another."""
    if len(pieces) == 1:
        return pieces[0]
    starts = np.cumsum([0, *(len(one.tokens) for one in pieces[:-1])]).tolist()
    return Example(
        np.concatenate([one.tokens for one in pieces]),
        np.concatenate([one.is_target for one in pieces]),
        pieces[0].source,
        tuple(starts),
        tuple(one.source for one in pieces[1:]),
    )
