# SPDX-License-Identifier: Apache-2.0
"""Reads rows in order, from the first one or from a saved place. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from oumi.core.data.sources.jsonl import content_of, parse_line
from oumi.core.data.sources.tabular import is_lines, read_rows, without_nulls
from oumi.core.errors import DataError
from oumi.core.hub import hub_errors
from oumi.core.types.example import RejectedRow, Row, Source, row_of

Place = dict[str, Any]
"""The position of a reader, as JSON values: checkpoints contain it."""


class RowReader(Protocol):
    """Reads rows in order, from a place that can be saved."""

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next `count` rows, fewer only at the end."""
        ...

    def place(self) -> Place:
        """Returns the place of the next row."""
        ...


class FileReader:
    """Reads the records of files, one file after the other.

    In an uncompressed file of lines, a place is found directly. In any other file, the rows before it are read again.
    """

    def __init__(
        self, files: Sequence[Path], sizes: Sequence[int | None], dataset: str, sample_by: str, place: Place | None
    ) -> None:
        """Opens files at a place, or at the first row.

        Args:
            files: The files, in order.
            sizes: Expected size of each file in bytes; None is not checked.
            dataset: Name of the data set, for messages.
            sample_by: Unit of a text file that is one row.
            place: Place of the first row to read.
        """
        self._files = files
        self._sizes = sizes
        self._dataset = dataset
        self._sample_by = sample_by
        self._place = place or {"file": 0, "row": 0, "byte": 0}
        self._rows = self._open()

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next `count` rows, fewer only at the end; raises DataError if a file has changed."""
        rows_read: list[Row | RejectedRow] = []
        while len(rows_read) < count and self._place["file"] < len(self._files):
            next_row = next(self._rows, None)
            if next_row is None:
                self._check_unchanged()  # a file that was truncated ends early, and looks complete
                self._place = {"file": self._place["file"] + 1, "row": 0, "byte": 0}
                self._rows = self._open()
                continue
            row, number, byte = next_row
            # A new mapping: callers keep the old one as the place of an earlier row.
            self._place = {**self._place, "row": number, "byte": byte}
            rows_read.append(row)
        return rows_read

    def place(self) -> Place:
        """Returns the index of the file, and the number of its rows (or lines) and bytes before the next row."""
        return self._place

    def _open(self) -> Iterator[tuple[Row | RejectedRow, int, int]]:
        """Returns the rows of the current file from the current place on, each with the place after it."""
        if self._place["file"] == len(self._files):
            return iter(())
        self._check_unchanged()
        path, first = self._files[self._place["file"]], self._place["row"]
        if is_lines(path):
            return _lines(path, self._dataset, first, self._place["byte"])
        rows = read_rows(path, self._dataset, self._sample_by)
        return ((row, number, 0) for number, row in enumerate(islice(rows, first, None), first + 1))

    def _check_unchanged(self) -> None:
        path, size = self._files[self._place["file"]], self._sizes[self._place["file"]]
        current_size = size_of(path)
        if size is not None and current_size != size:
            state = "is gone" if current_size is None else f"has {current_size:,} bytes"
            raise DataError(f"{path}:{self._place['row']}: the file changed: it had {size:,} bytes, and {state} now")


class IteratorReader:
    """Reads rows from an iterator."""

    def __init__(self, rows: Iterator[Row | RejectedRow], first: int) -> None:
        """Sets the iterator, and the index of the row that it yields first."""
        self._rows = rows
        self._row = first

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next `count` rows, fewer only at the end."""
        rows = list(islice(self._rows, count))
        self._row += len(rows)
        return rows

    def place(self) -> Place:
        """Returns the index of the next row."""
        return {"row": self._row}


class HubReader:
    """Reads a split that `datasets` streams. It resumes in the shard of its place, after its earlier rows there."""

    def __init__(self, rows: Any, dataset: str, name: str, place: Place | None) -> None:
        """Sets a stream of `datasets`, the name of the data set, that of its split, and the place to start at."""
        self._rows = rows
        self._dataset = dataset
        self._name = name
        self._place = place or {"row": 0, "stream": None}
        if self._place["row"]:
            rows.load_state_dict(self._place["stream"])
        self._values = iter(rows)

    def take(self, count: int) -> list[Row | RejectedRow]:
        """Returns the next `count` rows, fewer only at the end; raises DataError if they cannot be read."""
        first = self._place["row"]
        with hub_errors("data set", self._dataset):
            try:
                values = list(islice(self._values, count))
            except (ValueError, TypeError, UnicodeError) as error:
                reason = str(error).strip().partition("\n")[0]
                # The stream does not say which of the rows failed.
                raise DataError(f"{self._name}:{first}: cannot read this row or one soon after it: {reason}") from error
        # Until it yields a row, `state_dict` of a restored stream is that of its beginning, not the restored one.
        if values:
            self._place = {"row": first + len(values), "stream": self._rows.state_dict()}
        return [
            row_of(without_nulls(value), Source(self._dataset, self._name, i)) for i, value in enumerate(values, first)
        ]

    def place(self) -> Place:
        """Returns the index of the next row, and the state of the stream before it."""
        return self._place


def size_of(path: Path) -> int | None:
    """Returns the number of bytes of a file, None if it does not exist."""
    return path.stat().st_size if path.is_file() else None


def _lines(path: Path, dataset: str, number: int, byte: int) -> Iterator[tuple[Row | RejectedRow, int, int]]:
    """Yields the rows of a file after `number` lines of `byte` bytes, each with the lines and bytes up to its end.

    Unlike a `LineIndex`, it does not read the file before the first row.
    """
    with path.open("rb") as file:
        file.seek(byte)
        for line in file:
            byte += len(line)
            number += 1
            content = content_of(line, is_first=number == 1)
            if content is not None:
                yield parse_line(content, Source(dataset, str(path), number)), number, byte
