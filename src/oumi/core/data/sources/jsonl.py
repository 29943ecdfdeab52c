# SPDX-License-Identifier: Apache-2.0
"""JSON and JSON Lines as rows, and the index by which any line of a file is found at once. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from oumi.core.data.sources.files import BrokenFileError, opened
from oumi.core.errors import DataError
from oumi.core.types.example import RejectedRow, Row, Source, printable, row_of

MAX_ROW_BYTES = 16_000_000
"""A longer row is no row: its tokens alone would take gigabytes of memory."""
MAX_DEPTH = 100
"""Of lists and objects within each other."""
_EXCERPT_LENGTH = 80
_TOO_DEEP = f"not valid JSON: nested too deep, in more than {MAX_DEPTH} lists and objects"
_GAP = re.compile(r"\s*(,?)\s*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def begins_list(path: Path) -> bool:
    """Returns True if a file of JSON is a list, not a row a line."""
    with opened(path) as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def read_lines(path: Path, dataset: str) -> Iterator[Row | RejectedRow]:
    """Yields the row in each line of a file."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in iterate(file):
                yield parse_line(line, Source(dataset, str(path), number))
    except BrokenFileError as error:
        raise DataError(f"{path}:{number + 1}: {error.reason}") from None


def check_lines(path: Path) -> None:
    """Raises DataError if the first line of a `.json` file begins a value that goes on below it."""
    with opened(path) as file:
        lines = (line.removeprefix(BOM).rstrip().decode("utf-8", "replace") for line in file)
        first = next(filter(None, lines), "")
        goes_on = next(filter(None, lines), None) is not None
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        if error.pos >= len(first) and goes_on:
            raise DataError(f"{path}: one object over several lines; wanted a list of rows, or a row a line") from None


def parse_line(data: bytes, source: Source) -> Row | RejectedRow:
    """Returns the record in a line of JSON, or why there is none."""
    if len(data) > MAX_ROW_BYTES:
        shown = excerpt(data[: 4 * _EXCERPT_LENGTH].decode("utf-8", "replace"))
        return RejectedRow(source, f"longer than {MAX_ROW_BYTES:,} bytes: it has {len(data):,}", shown)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return RejectedRow(source, f"not UTF-8: byte {error.start}", excerpt(data.decode("utf-8", "replace")))
    if "\0" in text:
        return RejectedRow(source, "holds a NUL byte", excerpt(text))
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return RejectedRow(source, _TOO_DEEP, excerpt(text))
    except ValueError as error:
        return RejectedRow(source, f"not valid JSON: {error}", excerpt(text))
    return _checked(value, text, source)


def _checked(value: Any, text: str, source: Source) -> Row | RejectedRow:
    """Returns the record that a text of JSON says, or why it cannot be used."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        return RejectedRow(source, _TOO_DEEP, excerpt(text))
    if _SURROGATE.search(text) and not _is_text(value):
        return RejectedRow(source, "holds half of a character (a lone surrogate)", excerpt(text))
    return row_of(value, source)


def read_list(path: Path, dataset: str) -> Iterator[Row | RejectedRow]:
    """Yields the rows of a list.

    Raises:
        DataError: The list breaks off, or is not JSON.
    """
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
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
            raise DataError(f"{source}: {_TOO_DEEP}: {excerpt(text[at : at + _EXCERPT_LENGTH])}") from None
        except ValueError as error:
            reason = "the list breaks off here" if at >= len(text) - 1 else str(error).split(": line")[0]
            raise DataError(f"{source}: not valid JSON: {reason}: {excerpt(text[at : at + _EXCERPT_LENGTH])}") from None
        if end - at > MAX_ROW_BYTES:
            shown = excerpt(text[at : at + 2 * _EXCERPT_LENGTH])
            yield RejectedRow(source, f"longer than {MAX_ROW_BYTES:,} bytes: it has {end - at:,} characters", shown)
        else:
            yield _checked(value, text[at:end], source)
        at, is_first = end, False


def excerpt(text: str) -> str:
    """Returns the beginning of a text, 80 characters at most, with those written out that do not print."""
    shown = printable(text[: _EXCERPT_LENGTH + 1])
    return shown if len(shown) <= _EXCERPT_LENGTH else shown[:_EXCERPT_LENGTH] + "..."


def shown(value: Any) -> str:
    """Returns the beginning of a record, as it may stand in a file."""
    try:
        return excerpt(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return excerpt(str(value))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_deep(value: Any) -> bool:
    """Returns True if lists and objects stand deeper within each other than they may."""
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [
            inner
            for item in layer
            if isinstance(item, list | dict)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True


def _is_text(value: Any) -> bool:
    """Returns False if a string in the value holds half of a character."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


BOM = b"\xef\xbb\xbf"
CHANGED = "the file was changed or removed while it is read; bring it back as it was and go on, or start anew"
_CHUNK_BYTES = 1 << 24
_MAX_BLANK_BYTES = 64
"""A line of white space longer than that is not blank, but wrong."""


class LineIndex:
    """Where each line of a file begins that is not blank."""

    def __init__(self, path: Path) -> None:
        """Reads the file once."""
        self.path = path
        digest = hashlib.sha256()
        starts = [np.zeros(1, dtype=np.int64)]
        size = 0
        with path.open("rb") as file, ThreadPoolExecutor(1) as thread:
            while chunk := file.read(_CHUNK_BYTES):
                hashed = thread.submit(digest.update, chunk)
                starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (size + 1))
                size += len(chunk)
                hashed.result()
        bounds = np.concatenate(starts)
        if bounds[-1] != size:
            bounds = np.append(bounds, size)
        self.digest = digest.hexdigest()
        """SHA-256 of the content."""
        self._file = os.open(path, os.O_RDONLY)
        self._state = _state(os.fstat(self._file))
        self._starts, self._ends, self._numbers = self._without_blanks(bounds)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        """Returns the number of a line (from 1), and its bytes without the line's end."""
        start = int(self._starts[index])
        number = int(self._numbers[index]) if self._numbers is not None else index + 1
        data = os.pread(self._file, int(self._ends[index]) - start, start)
        if _state(os.fstat(self._file)) != self._state:
            raise DataError(f"{self.path}:{number}: {CHANGED}")
        return number, (data.removeprefix(BOM) if start == 0 else data).rstrip(b"\r\n")

    def _without_blanks(
        self, bounds: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        starts, ends = bounds[:-1], bounds[1:]
        short = np.flatnonzero(ends - starts <= _MAX_BLANK_BYTES)
        blank = [
            i for i in short.tolist() if is_blank(os.pread(self._file, int(ends[i] - starts[i]), int(starts[i])), i)
        ]
        if not blank:
            return starts, ends, None
        kept = np.delete(np.arange(len(starts)), blank)
        return starts[kept], ends[kept], kept + 1


def _state(stat: os.stat_result) -> tuple[int, int, bool]:
    return stat.st_size, stat.st_mtime_ns, stat.st_nlink > 0


def is_blank(line: bytes, index: int) -> bool:
    """Returns True for a line that holds no row; `index` is 0 for the first of a file."""
    content = line.removeprefix(BOM) if index == 0 else line
    return len(line) <= _MAX_BLANK_BYTES and not content.strip()


def index_lines(path: Path) -> LineIndex:
    """Returns the index of a file; that of a file which has not changed is kept."""
    stat = path.stat()
    with _LOCK:  # a second thread waits for the first one's index
        return _index(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


_LOCK = threading.Lock()


@lru_cache(maxsize=64)
def _index(path: Path, *_: int) -> LineIndex:
    return LineIndex(path)


def iterate(file: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields the number (from 1) and the bytes of each line that is not blank."""
    for index, line in enumerate(file):
        if not is_blank(line, index):
            yield index + 1, without_mark(line, index)


def without_mark(line: bytes, index: int) -> bytes:
    """Returns a line without its end, and the first of a file without the mark of its encoding."""
    return (line.removeprefix(BOM) if index == 0 else line).rstrip(b"\r\n")
