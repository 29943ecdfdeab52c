# SPDX-License-Identifier: Apache-2.0
"""A table that is still being made by another process, while its rows are trained already."""

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
    """The work of the other process."""

    def poll(self) -> TokenTable | None:
        """Returns the table once it is complete; raises DataError if rows cannot be used."""
        ...

    def wait(self) -> TokenTable:
        """Returns the table when it is complete."""
        ...

    def stop(self) -> None:
        """Ends the work."""
        ...


class LazyTable:
    """Rows that are tokenized when they are asked for, until all of them are.

    Stands only for data sets of which any row is found at once, each of which comes to one example; whatever is
    asked, the answer is that of the complete table.
    """

    def __init__(
        self,
        rows: IndexedRows,
        value_of: Callable[[Row | RejectedRow], Row | RejectedRow],
        row_tokenizer: RowTokenizer,
        making: TableBuild,
        ledger: Ledger,
    ) -> None:
        self._rows = rows
        self._value_of = value_of
        self._tokeniser = row_tokenizer
        self._making = making
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
        (made,) = self._tokeniser.make([self._value_of(self._rows[index])])
        if isinstance(made, RejectedRow):
            self._making.stop()
            self._counts.reject(made)
            self._ledger.counts = self._counts
            self._ledger.close()
            raise AssertionError("rows may only be trained early where none may be rejected")
        (example,) = made.examples
        if index not in self._counted:
            self._counted.add(index)
            self._counts.accept(made.examples, made.cut_tokens, made.cut_targets)
        return example

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens each row has [R], once all are known."""
        return self.complete().lengths()

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens of each row are trained [R], once all are known."""
        return self.complete().targets()

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, once all are known."""
        return self.complete().highest_token

    def close(self, may_wait: bool = False) -> Counts:
        """Ends the work, or waits for its end, and returns what became of the rows that were read."""
        if may_wait:
            self.complete()
        if (table := self.if_complete()) is not None:
            return Counts.from_state(table.ledger)
        self._making.stop()
        return self._counts

    def if_complete(self) -> TokenTable | None:
        """Returns the complete table, None while it is being made."""
        self._table = self._table or self._making.poll()
        return self._table

    def complete(self) -> TokenTable:
        """Returns the complete table, for which it waits."""
        self._table = self._table or self._making.wait()
        return self._table
