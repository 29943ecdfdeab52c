# SPDX-License-Identifier: Apache-2.0
"""Records that are in memory already, and the first of some records. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from oumi.core.data.sources.hub import LARGE_ROWS
from oumi.core.data.sources.reader import ListReader, Place, RowReader
from oumi.core.data.sources.source import IndexedRows, RowSource
from oumi.core.types.example import RejectedRow, Row, Source


class MemorySource:
    """Records in memory: a list of mappings, or a table of pandas."""

    def __init__(self, records: Any, dataset: str, place: str) -> None:
        """Takes the records, the name of the data set, and what stands for a file's name."""
        self._length = len(records)
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
        """Returns how many there are."""
        return self._length

    def content(self) -> dict[str, str] | None:
        """Returns the digest of the records, None if they are more than plain values."""
        try:
            text = json.dumps(list(self._records), sort_keys=True)
        except (TypeError, ValueError):
            return None
        return {self._place: hashlib.sha256(text.encode()).hexdigest()}

    def indexed(self) -> IndexedRows | None:
        """Returns itself."""
        return self

    def reader(self, place: Place | None) -> ListReader:
        """Returns a reader that goes on at a place."""
        return ListReader(len(self), self.__getitem__, place)

    def sizes(self) -> dict[str, str]:
        """Returns how many there are."""
        return {self._place: str(self._length)}

    @property
    def is_large(self) -> bool:
        """Returns False: what is in memory is no burden."""
        return False


class LimitedSource:
    """The first of some records."""

    def __init__(self, rows: RowSource, limit: int) -> None:
        """Takes the records, and how many of them there are to be at most."""
        self._rows = rows
        self._limit = limit

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return islice(iter(self._rows), self._limit)

    def count(self) -> int | None:
        """Returns how many there are, None where only reading would tell."""
        count = self._rows.count()
        return None if count is None else min(count, self._limit)

    def content(self) -> dict[str, str] | None:
        """Returns what all the records are, and how many of them are taken."""
        content = self._rows.content()
        return None if content is None else {**content, "limit": str(self._limit)}

    def indexed(self) -> IndexedRows | None:
        """Returns the records as a list, if all of them are one."""
        indexed = self._rows.indexed()
        return None if indexed is None else _First(indexed, self._limit)

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that goes on at a place."""
        return _FirstOf(self._rows.reader(place), self._limit, place["taken"] if place else 0)

    def sizes(self) -> dict[str, str]:
        """Returns what is known of all the records, and how many of them are taken."""
        return {**self._rows.sizes(), "limit": str(self._limit)}

    @property
    def is_large(self) -> bool:
        """Returns True if there are many, and most are taken."""
        return self._limit > LARGE_ROWS and self._rows.is_large


class _First:
    """The beginning of a list."""

    def __init__(self, rows: IndexedRows, limit: int) -> None:
        self._rows = rows
        self._length = min(len(rows), limit)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row | RejectedRow:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._rows[index]


class _FirstOf:
    """Reads until so many rows were taken."""

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
