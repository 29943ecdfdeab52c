# SPDX-License-Identifier: Apache-2.0
"""Reads the rows of a file of any format, each with its line. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from oumi.core.data.sources.files import check_file, is_compressed, opened
from oumi.core.data.sources.jsonl import DECODER, begins_list, check_lines, excerpt, index_lines, read_lines, read_list
from oumi.core.errors import DataError
from oumi.core.types.example import RejectedRow, Row, Source, row_of

SAMPLES = ("document", "paragraph", "line")
"""The units of a text file that can be one row."""
_PARQUET_ROWS = 1024
"""Rows that are converted to Python objects together."""
_CHUNK_BYTES = 1 << 24


def read_rows(path: Path, dataset: str, sample_by: str = "document") -> Iterator[Row | RejectedRow]:
    """Yields the records of a file in order: JSON, JSON Lines, CSV, Parquet or text, compressed or not.

    Args:
        path: The file; its suffix determines its format.
        dataset: Name of the data set, for messages.
        sample_by: Unit of a text file that is one row, one of SAMPLES.

    Raises:
        DataError: The file is missing, empty, of an unknown format, or broken.
    """
    kind = check_file(path)
    if kind == ".parquet":
        return _parquet(path, dataset)
    if kind in (".csv", ".tsv"):
        return _table(path, dataset, "\t" if kind == ".tsv" else ",")
    if kind == ".txt":
        return _text(path, dataset, sample_by)
    if kind == ".json":
        if begins_list(path):
            return read_list(path, dataset)
        check_lines(path)
    return read_lines(path, dataset)


def count_rows(path: Path) -> int | None:
    """Returns the number of rows of a file, None if it is known only after reading them."""
    kind = check_file(path)
    if kind == ".parquet":
        return int(_opened_parquet(path).metadata.num_rows)
    if is_lines(path):
        return len(index_lines(path))
    if is_compressed(path) or kind != ".json":
        return None
    # A list in one JSON file is small enough to parse twice. If it is broken, reading it reports where.
    try:
        return len(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return None


def is_lines(path: Path) -> bool:
    """Returns True for a file with random access to its rows: one per line, and not compressed."""
    kind = check_file(path)
    return not is_compressed(path) and (kind == ".jsonl" or (kind == ".json" and not begins_list(path)))


def _text(path: Path, dataset: str, sample_by: str) -> Iterator[Row | RejectedRow]:
    """Yields the lines, the paragraphs (separated by blank lines) or all of a text file, with their white space."""
    with opened(path) as file:
        lines: list[str] = []
        first = 1
        for number, line in enumerate(chain(_decoded(file, path), [None]), 1):  # None ends the last row
            if line is not None:
                lines.append(line)
                if not (sample_by == "line" or (sample_by == "paragraph" and not line.strip())):
                    continue
            text, source = "".join(lines), Source(dataset, str(path), first)
            if "\0" in text:
                yield RejectedRow(source, "holds a NUL byte", excerpt(text))
            elif text.strip():
                yield Row({"text": text}, source)
            lines, first = [], number + 1


def _table(path: Path, dataset: str, delimiter: str) -> Iterator[Row | RejectedRow]:
    """Yields the rows of CSV or TSV, with the names of the first line as keys."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
    with opened(path) as file:
        reader = csv.reader(_decoded(file, path), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}:1: two columns have the same name: {', '.join(repeated)}")
            while True:
                number = reader.line_num + 1  # before the row is read: a quoted field may span several lines
                values = next(reader, None)
                if values is None:
                    return
                source = Source(dataset, str(path), number)
                if any("\0" in value for value in values):
                    yield RejectedRow(source, "holds a NUL byte", excerpt(delimiter.join(values)))
                elif len(values) == len(names):
                    try:
                        cells = {name: _cell(value) for name, value in zip(names, values, strict=True)}
                    except ValueError as error:
                        yield RejectedRow(source, f"not valid JSON: {error}", excerpt(delimiter.join(values)))
                    else:
                        yield row_of(cells, source)
                elif values:  # the parser returns an empty list for a blank line
                    reason = f"has another number of fields than the first line: {len(values)}, not {len(names)}"
                    yield RejectedRow(source, reason, excerpt(delimiter.join(values)))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _cell(value: str) -> Any:
    """Returns the value of a cell: a list of objects, such as messages, if it is one in JSON, else its text.

    Raises:
        ValueError: It is one, with a value that is refused.
    """
    if value.startswith("[{") and value.endswith("}]"):
        try:
            return DECODER.decode(value)
        except json.JSONDecodeError:
            return value
    return value


def _decoded(file: Any, path: Path) -> Iterator[str]:
    """Yields lines of text; raises DataError with the line if they are not UTF-8."""
    # "utf-8-sig" drops a byte order mark; with newline="" line breaks within quoted fields stay as they are.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    number = 0
    try:
        for line in text:
            yield line
            number += 1
    except UnicodeDecodeError as error:  # a block of many lines is decoded before its first one is yielded
        raise DataError(f"{path}: not UTF-8, at or after line {number + 1}: {error.reason}") from None


def _parquet(path: Path, dataset: str) -> Iterator[Row | RejectedRow]:
    import pyarrow

    number = 0
    try:
        for batch in _opened_parquet(path).iter_batches(_PARQUET_ROWS):
            for value in map(without_nulls, batch.to_pylist()):
                yield row_of(value, Source(dataset, str(path), number))
                number += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a valid Parquet file: {str(error).splitlines()[0]}") from None


def without_nulls(value: Any) -> Any:
    """Returns a row of Arrow without the nulls inside its columns.

    In Arrow, every object of a column has the keys of all others, with null where it had none.
    """
    return {key: _without_nulls_inside(item) for key, item in value.items()}


def _without_nulls_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls_inside(item) for key, item in value.items() if item is not None}
    return [_without_nulls_inside(item) for item in value] if isinstance(value, list) else value


def _opened_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a valid Parquet file: {str(error).splitlines()[0]}") from None


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    if is_data_lines(path):
        return index_lines(path).digest
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    # The other arguments are the state of the file, so that a changed file misses the cache.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_data_lines(path: Path) -> bool:
    """Returns True for a file with an index of its lines, which holds its digest too."""
    return path.suffix.lower() in (".jsonl", ".json") and path.stat().st_size > 0 and is_lines(path)
