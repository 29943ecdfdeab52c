# SPDX-License-Identifier: Apache-2.0
"""Records in memory, and the first records of another source. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from oumi.core.data.sources.hub import LARGE_ROWS
from oumi.core.data.sources.reader import IteratorReader, Place, RowReader
from oumi.core.data.sources.source import IndexedRows, RowSource
from oumi.core.types.example import RejectedRow, Row, Source


class MemorySource:
    """Records in memory: a list of mappings, or a pandas data frame."""

    is_large = False  # what fits in memory is tokenized quickly enough by one process

    def __init__(self, records: Any, dataset: str, place: str) -> None:
        """Sets the records, the name of the data set, and what messages name as its path."""
        self._length = len(records)
        # Indexing a data frame selects a column, only `iloc` a row.
        self._records = records.iloc if hasattr(records, "iloc") else records
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return (self[index] for index in range(self._length))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row | RejectedRow:
        return Row(self._records[index], Source(self._dataset, self._place, index))

    def count(self) -> int | None:
        """Returns the number of records."""
        return self._length

    def content(self, is_streamed: bool = False) -> dict[str, str] | None:
        """Returns the digest of the records, or their number if `is_streamed`; None if JSON cannot represent them."""
        if is_streamed:
            return {self._place: str(self._length)}
        try:
            text = json.dumps(list(self._records), sort_keys=True)
        except (TypeError, ValueError):
            return None
        return {self._place: hashlib.sha256(text.encode()).hexdigest()}

    def indexed(self) -> IndexedRows | None:
        """Returns the source itself, which has random access."""
        return self

    def reader(self, place: Place | None) -> IteratorReader:
        """Returns a reader that starts at a place, or at the first record."""
        first = place["row"] if place else 0
        return IteratorReader(map(self.__getitem__, range(first, len(self))), first)


class LimitedSource:
    """The first records of another source."""

    def __init__(self, rows: RowSource, limit: int) -> None:
        """Sets the source, and the maximum number of its records."""
        self._rows = rows
        self._limit = limit

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return islice(iter(self._rows), self._limit)

    def count(self) -> int | None:
        """Returns the number of records, None if it is known only after reading them."""
        count = self._rows.count()
        return None if count is None else min(count, self._limit)

    def content(self, is_streamed: bool = False) -> dict[str, str] | None:
        """Returns the content of the whole source, and the limit."""
        content = self._rows.content(is_streamed)
        return None if content is None else {**content, "limit": str(self._limit)}

    def indexed(self) -> IndexedRows | None:
        """Returns the records with random access, None if the source can only be read in order."""
        indexed = self._rows.indexed()
        return None if indexed is None else _LimitedRows(indexed, self._limit)

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that starts at a place, or at the first record."""
        return _LimitedReader(self._rows.reader(place), self._limit, place["taken"] if place else 0)

    @property
    def is_large(self) -> bool:
        """Returns True if the source is large and the limit many records."""
        return self._limit > LARGE_ROWS and self._rows.is_large


class _LimitedRows:
    """The first records of a source with random access."""

    def __init__(self, rows: IndexedRows, limit: int) -> None:
        self._rows = rows
        self._length = min(len(rows), limit)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row | RejectedRow:
        if not 0 <= index < self._length:  # the source itself may have more rows
            raise IndexError(index)
        return self._rows[index]


class _LimitedReader:
    """Reads rows up to a limit."""

    def __init__(self, reader: RowReader, limit: int, num_read: int) -> None:
        self._reader = reader
        self._limit = limit
        self._num_read = num_read

    def take(self, count: int) -> list[Row | RejectedRow]:
        rows = self._reader.take(min(count, self._limit - self._num_read))
        self._num_read += len(rows)
        return rows

    def place(self) -> Place:
        return {**self._reader.place(), "taken": self._num_read}
