# SPDX-License-Identifier: Apache-2.0
"""Rows in order, from any place that was noted. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from oumi.core.data.sources.jsonl import is_blank, parse_line, without_mark
from oumi.core.data.sources.tabular import is_lines, read_rows, without_nulls
from oumi.core.errors import DataError
from oumi.core.hub import hub_errors
from oumi.core.types.example import RejectedRow, Row, Source, row_of

Place = dict[str, Any]
"""Where a reader stands, as JSON values."""


class RowReader(Protocol):
    """Reads rows in order, and knows where it stands."""

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next rows, fewer than `count` only at the end."""
        ...

    def place(self) -> Place:
        """Returns where the next row stands."""
        ...


class FileReader:
    """The records of files, one file after the other.

    In a file of lines that is not compressed any place is found at once; in another one what stands before it in
    that file is read over.
    """

    def __init__(
        self, files: Sequence[Path], sizes: Sequence[int | None], dataset: str, sample_by: str, place: Place | None
    ) -> None:
        """Takes files, their sizes as they are to stay, and where to go on."""
        self._files = files
        self._sizes = sizes
        self._dataset = dataset
        self._sample_by = sample_by
        self._place = place or {"file": 0, "row": 0, "byte": 0}
        self._rows = self._opened()

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next rows; raises DataError if a file has changed meanwhile."""
        rows_read: list[Row | RejectedRow] = []
        while len(rows_read) < count and self._place["file"] < len(self._files):
            next_row = next(self._rows, None)
            if next_row is None:
                self._check_unchanged()
                self._place = {"file": self._place["file"] + 1, "row": 0, "byte": 0}
                self._rows = self._opened()
                continue
            row, number, byte = next_row
            self._place = {**self._place, "row": number, "byte": byte}
            rows_read.append(row)
        return rows_read

    def place(self) -> Place:
        """Returns the file, the rows or lines of it that were read, and their bytes."""
        return self._place

    def _opened(self) -> Iterator[tuple[Row | RejectedRow, int, int]]:
        if self._place["file"] == len(self._files):
            return iter(())
        path, first = self._files[self._place["file"]], self._place["row"]
        self._check_unchanged()
        if is_lines(path):
            return _lines(path, self._dataset, first, self._place["byte"])
        rows = read_rows(path, self._dataset, self._sample_by)
        return ((row, i, 0) for i, row in enumerate(islice(rows, first, None), first + 1))

    def _check_unchanged(self) -> None:
        which = self._place["file"]
        path, size = self._files[which], self._sizes[which]
        now = size_of(path)
        if size is not None and now != size:
            state = "is gone" if now is None else f"has {now:,} bytes"
            raise DataError(f"{path}:{self._place['row']}: the file changed: it had {size:,} bytes, and {state} now")


class ListReader:
    """Rows of which any is found at once."""

    def __init__(self, length: int, row_of: Callable[[int], Row | RejectedRow], place: Place | None) -> None:
        self._length = length
        self._row_of = row_of
        self._row = place["row"] if place else 0

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next rows."""
        rows = range(self._row, min(self._row + count, self._length))
        self._row = rows.stop
        return [self._row_of(i) for i in rows]

    def place(self) -> Place:
        """Returns how many rows were read."""
        return {"row": self._row}


class RepeatedReader:
    """Rows that code makes, always the same; those before a place are made again."""

    def __init__(self, rows: Iterator[Row | RejectedRow], place: Place | None) -> None:
        self._row = place["row"] if place else 0
        self._rows = islice(rows, self._row, None)

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next rows."""
        rows_read = list(islice(self._rows, count))
        self._row += len(rows_read)
        return rows_read

    def place(self) -> Place:
        """Returns how many rows were read."""
        return {"row": self._row}


class HubReader:
    """The records of a split that `datasets` streams; it finds its shard at once, and reads over what stands before."""

    def __init__(self, rows: Any, dataset: str, name: str, place: Place | None) -> None:
        """Takes a stream of `datasets`, the name of the data set and that of its split."""
        self._rows = rows
        self._dataset = dataset
        self._name = name
        self._place = place or {"row": 0, "stream": None}
        if self._place["row"]:
            rows.load_state_dict(self._place["stream"])
        self._values = iter(rows)

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next rows."""
        first = self._place["row"]
        with hub_errors("data set", self._dataset):
            try:
                values = list(islice(self._values, count))
            except (ValueError, TypeError, UnicodeError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise DataError(
                    f"{self._name}:{first}: cannot be read at this row or soon after it: {reason}"
                ) from error
        # Until it yields a row, `state_dict` of a restored stream is that of its beginning, not the restored one.
        if values:
            self._place = {"row": first + len(values), "stream": self._rows.state_dict()}
        return [
            row_of(without_nulls(value), Source(self._dataset, self._name, i)) for i, value in enumerate(values, first)
        ]

    def place(self) -> Place:
        """Returns how many rows were read, and what `datasets` needs to go on."""
        return self._place


def size_of(path: Path) -> int | None:
    """Returns how many bytes a file has, None if there is none."""
    return path.stat().st_size if path.is_file() else None


def _lines(path: Path, dataset: str, number: int, byte: int) -> Iterator[tuple[Row | RejectedRow, int, int]]:
    """Yields the rows of a file from a line on, each with the number and the place of the end of its line."""
    with path.open("rb") as file:
        file.seek(byte)
        for line in file:
            byte += len(line)
            number += 1
            if not is_blank(line, number - 1):
                row = parse_line(without_mark(line, number - 1), Source(dataset, str(path), number))
                yield row, number, byte
