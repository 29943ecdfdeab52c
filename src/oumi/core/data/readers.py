# SPDX-License-Identifier: Apache-2.0
"""Files as rows, each with the line where it stands. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from oumi.core.configs.data import FILE_SUFFIXES
from oumi.core.errors import DataError
from oumi.core.types.example import BadRow, Row, Source

MAX_ROW_BYTES = 64_000_000
_EXCERPT_LENGTH = 80
_BOM = b"\xef\xbb\xbf"
_GAP = re.compile(r"\s*(,?)\s*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_rows(path: Path, dataset: str) -> Iterator[Row | BadRow]:
    """Yields the records of a `.jsonl`, `.json` or `.parquet` file in order.

    Raises:
        DataError: No such file, an empty one, another kind, or a JSON list that breaks off.
    """
    check_file(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path, dataset)
    if _is_list(path):
        return _json_list(path, dataset)
    if path.suffix.lower() == ".json":
        _check_lines(path)
    return _json_lines(path, dataset)


def count_rows(path: Path) -> int | None:
    """Returns how many rows a file holds, None if that cannot be told before reading it."""
    check_file(path)
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(path).metadata.num_rows)
    if _is_list(path):
        try:
            return len(json.loads(path.read_bytes()))
        except ValueError:
            return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.removeprefix(_BOM).strip())


def check_file(path: Path) -> None:
    """Raises DataError unless the path is a file that can be read here."""
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise DataError(f"{path}: cannot be read; a data file ends in {', '.join(FILE_SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty")


def excerpt(text: str) -> str:
    """Returns the beginning of a text with control characters written out."""
    shown = text[:_EXCERPT_LENGTH].encode("unicode_escape").decode()
    return shown + ("..." if len(text) > _EXCERPT_LENGTH else "")


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()
    return path.suffix.lower() == ".json" and start.startswith(b"[")


def _check_lines(path: Path) -> None:
    """Raises DataError if the first line of a `.json` file begins a value that goes on below it."""
    with path.open("rb") as file:
        lines = (line.removeprefix(_BOM).rstrip().decode("utf-8", "replace") for line in file)
        first = next(filter(None, lines), "")
        goes_on = next(filter(None, lines), None) is not None
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        if error.pos >= len(first) and goes_on:
            raise DataError(f"{path}: one object over several lines; wanted a list of rows, or a row a line") from None


def _json_lines(path: Path, dataset: str) -> Iterator[Row | BadRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(_BOM) if number == 1 else line
            if data.strip():
                yield _parse(data.rstrip(b"\r\n"), Source(dataset, str(path), number))


def _parse(data: bytes, source: Source) -> Row | BadRow:
    if len(data) > MAX_ROW_BYTES:
        return BadRow(source, f"a row of {len(data):,} bytes; at most {MAX_ROW_BYTES:,} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(source, f"not UTF-8 (byte {error.start})", excerpt(data.decode("utf-8", "replace")))
    if "\0" in text:
        return BadRow(source, "holds a NUL byte", excerpt(text))
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return BadRow(source, "not valid JSON: nested too deep", excerpt(text))
    except ValueError as error:
        return BadRow(source, f"not valid JSON: {error}", excerpt(text))
    if _SURROGATE.search(text) and not _is_text(value):
        return BadRow(source, "holds half of a character (a lone surrogate)", excerpt(text))
    return Row(value, source)


def _json_list(path: Path, dataset: str) -> Iterator[Row | BadRow]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    at, line, counted = text.index("[") + 1, 1, 0
    is_first = True
    while True:
        gap = _GAP.match(text, at)
        assert gap is not None, "the pattern matches nothing, too"
        at = gap.end()
        line += text.count("\n", counted, at)
        counted = at
        source = Source(dataset, str(path), line)
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise DataError(f"{source}: text after the end of the list: {excerpt(text[at + 1 :].strip())}")
            return
        try:
            if at < len(text) and is_first == bool(gap[1]):
                raise ValueError("a comma stands between two rows, and nowhere else")
            value, end = decoder.raw_decode(text, at)
        except RecursionError:
            raise DataError(f"{source}: not valid JSON: nested too deep") from None
        except ValueError as error:
            reason = "the list breaks off here" if at >= len(text) - 1 else str(error).split(": line")[0]
            raise DataError(f"{source}: not valid JSON: {reason}: {excerpt(text[at : at + _EXCERPT_LENGTH])}") from None
        part = text[at:end]
        if _SURROGATE.search(part) and not _is_text(value):
            yield BadRow(source, "holds half of a character (a lone surrogate)", excerpt(part))
        else:
            yield Row(value, source)
        at, is_first = end, False


def _parquet(path: Path, dataset: str) -> Iterator[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                yield Row(value, Source(dataset, str(path), number))
                number += 1
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file, or a broken one: {str(error).splitlines()[0]}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_text(value: Any) -> bool:
    """Returns False if a string in the value holds half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
