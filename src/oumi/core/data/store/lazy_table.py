# SPDX-License-Identifier: Apache-2.0
"""A table whose rows can be read while another process is still writing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.sources.source import IndexedRows
from oumi.core.data.store.token_table import TokenTable
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.types.example import Example, RejectedRow, Row


class TableBuild(Protocol):
    """Another process that writes a table."""

    def poll(self) -> TokenTable | None:
        """Returns the table if it is complete; raises DataError if rows cannot be used."""
        ...

    def wait(self) -> TokenTable:
        """Waits for the table and returns it; raises as `poll` does."""
        ...

    def stop(self) -> None:
        """Ends the process."""
        ...


class LazyTable:
    """Rows that are tokenized on access until the table of all rows is complete.

    Each row must have random access and give exactly one example. Every method returns what the complete table returns,
    and waits for it if need be.
    """

    def __init__(
        self,
        rows: IndexedRows,
        value_of: Callable[[Row | RejectedRow], Row | RejectedRow],
        row_tokenizer: RowTokenizer,
        build: TableBuild,
        ledger: Ledger,
    ) -> None:
        self._rows = rows
        self._value_of = value_of
        self._row_tokenizer = row_tokenizer
        self._build = build
        self._ledger = ledger
        self._table: TokenTable | None = None
        self._counts = Counts()
        self._counted: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        table = self.if_complete()
        if table is not None:
            return table[index]
        (encoded,) = self._row_tokenizer.make([self._value_of(self._rows[index])])
        if isinstance(encoded, RejectedRow):
            # The other process would only report the same row later.
            self._build.stop()
            self._counts.reject(encoded)
            self._ledger.counts = self._counts
            self._ledger.close()  # raises DataError, since no row may be rejected
            raise AssertionError("rows may only be trained early where none may be rejected")
        (example,) = encoded.examples
        # Each row counts once, also if a second epoch begins before the table is complete.
        if index not in self._counted:
            self._counted.add(index)
            self._counts.accept(encoded)
            self._ledger.warn(encoded)
        return example

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each row [R]; waits for the table."""
        return self.complete().lengths()

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns the number of trained tokens of each row [R]; waits for the table."""
        return self.complete().targets()

    @property
    def highest_token(self) -> int:
        """Returns the largest token id; waits for the table."""
        return self.complete().highest_token

    def close(self, may_wait: bool = False) -> Counts:
        """Ends the other process, or waits for its end, and returns the counts of the rows that were read."""
        if may_wait:
            self.complete()
        if (table := self.if_complete()) is not None:
            return Counts.from_state(table.ledger)
        self._build.stop()
        return self._counts

    def if_complete(self) -> TokenTable | None:
        """Returns the complete table, None if it is not complete yet."""
        self._table = self._table or self._build.poll()
        return self._table

    def complete(self) -> TokenTable:
        """Returns the complete table; waits for it."""
        self._table = self._table or self._build.wait()
        return self._table
