# SPDX-License-Identifier: Apache-2.0
"""Reads rows of JSON and JSON Lines, in order or, by an index of lines, in any order. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
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
"""Longer rows are rejected: their tokens alone would take gigabytes of memory."""
MAX_DEPTH = 100
"""Levels of nested lists and objects in a row."""
BOM = b"\xef\xbb\xbf"
CHANGED = "the file was changed or removed during the run; restore it and resume, or start a new run"
_CHUNK_BYTES = 1 << 24
_MAX_BLANK_BYTES = 64
"""Longer lines are never blank, so that an index reads only short ones again. If of white space, they are rejected."""
_EXCERPT_LENGTH = 80
_TOO_DEEP = f"nested too deep, more than {MAX_DEPTH} lists and objects"
_GAP = re.compile(r"\s*(,?)\s*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def begins_list(path: Path) -> bool:
    """Returns True if a JSON file is one list, not one row per line."""
    with opened(path) as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def read_lines(path: Path, dataset: str) -> Iterator[Row | RejectedRow]:
    """Yields the row of each line that is not blank; raises DataError if compressed data is truncated."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                content = content_of(line, is_first=number == 1)
                if content is not None:
                    yield parse_line(content, Source(dataset, str(path), number))
    except BrokenFileError as error:
        raise DataError(f"{path}:{number + 1}: {error.reason}") from None


def content_of(line: bytes, is_first: bool) -> bytes | None:
    """Returns a line without its line break, and the first one without its byte order mark; None for a blank line."""
    content = (line.removeprefix(BOM) if is_first else line).rstrip(b"\r\n")
    return content if len(line) > _MAX_BLANK_BYTES or content.strip() else None


def check_lines(path: Path) -> None:
    """Raises DataError if a `.json` file is one object that spans several lines."""
    with opened(path) as file:
        lines = (line.removeprefix(BOM).rstrip().decode("utf-8", "replace") for line in file)
        first = next(filter(None, lines), "")
        continues = next(filter(None, lines), None) is not None
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        # Only an incomplete line is meant here. An invalid one is rejected later, with its number.
        if error.pos >= len(first) and continues:
            raise DataError(f"{path}: one object over several lines; expected a list, or one row per line") from None


def parse_line(data: bytes, source: Source) -> Row | RejectedRow:
    """Returns the record of a line of JSON, or the reason why it cannot be used."""
    if len(data) > MAX_ROW_BYTES:
        # A character has up to 4 bytes. Cut before decoding, since the line may be very long.
        start = excerpt(data[: 4 * _EXCERPT_LENGTH].decode("utf-8", "replace"))
        return RejectedRow(source, f"longer than {MAX_ROW_BYTES:,} bytes: it has {len(data):,}", start)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return RejectedRow(source, f"not UTF-8: byte {error.start}", excerpt(data.decode("utf-8", "replace")))
    if "\0" in text:  # a crash during a write leaves such bytes; the JSON error would not name them
        return RejectedRow(source, "holds a NUL byte", excerpt(text))
    try:
        value = parsed(text)
    except ValueError as error:
        return RejectedRow(source, f"not valid JSON: {error}", excerpt(text))
    return _checked(value, text, source)


def parsed(text: str, decoder: json.JSONDecoder | None = None) -> Any:
    """Returns the value of JSON text; raises ValueError if it has none, or if it is nested too deep."""
    try:
        value = (decoder or DECODER).decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _is_too_deep(value, text):
        raise ValueError(_TOO_DEEP)
    return value


def _checked(value: Any, text: str, source: Source) -> Row | RejectedRow:
    """Returns the record that was parsed from `text`, or the reason why it cannot be used."""
    if _SURROGATE.search(text):
        # Tokenizers cannot encode a lone surrogate. Two that form a character are valid; encoding tells them apart.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return RejectedRow(source, "holds half of a character (a lone surrogate)", excerpt(text))
    return row_of(value, source)


def read_list(path: Path, dataset: str) -> Iterator[Row | RejectedRow]:
    """Yields the rows of a JSON list, each with the line on which it begins.

    The rows are parsed one by one, since `json.load` would give no line numbers and keep all rows in memory.

    Raises:
        DataError: The list is truncated, or not valid JSON.
    """
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    at, line, counted = text.index("[") + 1, 1, 0
    is_first = True
    while True:
        # Skip white space and the comma between two rows; line breaks are counted once each.
        gap = _GAP.match(text, at)
        assert gap is not None, "the pattern matches the empty string"
        at = gap.end()
        line += text.count("\n", counted, at)
        counted = at
        source = Source(dataset, str(path), line)
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise DataError(f"{source}: text after the end of the list: {excerpt(text[at + 1 :].strip())}")
            return
        try:
            # At the end of the text, the decoder fails below with the better message.
            if at < len(text) and is_first == bool(gap[1]):
                message = "unexpected comma before the first row" if is_first else "no comma between two rows"
                raise json.JSONDecodeError(message, text, at)
            value, end, problem = _decoded_at(text, at)
        except RecursionError:
            raise DataError(
                f"{source}: not valid JSON: {_TOO_DEEP}: {excerpt(text[at : at + _EXCERPT_LENGTH])}"
            ) from None
        except json.JSONDecodeError as error:
            reason = "the list is truncated here" if at >= len(text) - 1 else str(error).split(": line")[0]
            raise DataError(f"{source}: not valid JSON: {reason}: {excerpt(text[at : at + _EXCERPT_LENGTH])}") from None
        if not problem and _is_too_deep(value, text[at:end]):
            problem = _TOO_DEEP
        if problem:
            yield RejectedRow(source, f"not valid JSON: {problem}", excerpt(text[at:end]))
        elif end - at > MAX_ROW_BYTES:
            start = excerpt(text[at : at + 2 * _EXCERPT_LENGTH])
            yield RejectedRow(source, f"longer than {MAX_ROW_BYTES:,} bytes: it has {end - at:,} characters", start)
        else:
            yield _checked(value, text[at:end], source)
        at, is_first = end, False


def excerpt(text: str) -> str:
    """Returns the first 80 characters of a text, with those escaped that do not print."""
    escaped = printable(text[: _EXCERPT_LENGTH + 1])  # cut first: a text may have megabytes
    return escaped if len(escaped) <= _EXCERPT_LENGTH else escaped[:_EXCERPT_LENGTH] + "..."


def shown(value: Any) -> str:
    """Returns the first 80 characters of a record as JSON, or as Python prints it if JSON cannot represent it."""
    try:
        return excerpt(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return excerpt(str(value))


def _refuse_constant(name: str) -> NoReturn:
    # Python parses NaN and Infinity, which JSON does not have.
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than any number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; of two values under one key, Python itself would drop the first."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key '{repeated}' twice")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
"""Refuses, by ValueError, what is valid for Python but loses a value, or has none."""
LAST_VALUE_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
"""The same, but takes the last of two values under one key."""
_LENIENT_DECODER = json.JSONDecoder(parse_int=str)
"""Finds the end of a value that `DECODER` refuses. Python converts no number of more than 4,300 digits."""


def _decoded_at(text: str, at: int) -> tuple[Any, int, str]:
    """Returns the value at a place, its end, and why it is refused, if its brackets and commas are valid.

    Raises:
        json.JSONDecodeError: They are not.
    """
    try:
        return *DECODER.raw_decode(text, at), ""
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        return None, _LENIENT_DECODER.raw_decode(text, at)[1], str(error)


def _is_too_deep(value: Any, text: str) -> bool:
    """Returns True if the value of a text has lists and objects nested more than MAX_DEPTH levels deep."""
    # The number of brackets bounds the depth, so that the values of most texts need no look.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    layer = [value]
    for _ in range(MAX_DEPTH):  # level by level: recursion could itself go too deep
        layer = [
            inner
            for item in layer
            if isinstance(item, list | dict)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not layer:
            return False
    return True


class LineIndex:
    """The lines of a file that are not blank, with random access."""

    def __init__(self, path: Path) -> None:
        """Reads the file once, to find its lines and its digest."""
        self.path = path
        digest = hashlib.sha256()
        starts = [np.zeros(1, dtype=np.int64)]
        size = 0
        # Hashing releases the interpreter lock, so a thread does it while numpy finds the line breaks.
        with path.open("rb") as file, ThreadPoolExecutor(1) as thread:
            while chunk := file.read(_CHUNK_BYTES):
                hashed = thread.submit(digest.update, chunk)
                starts.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + (size + 1))
                size += len(chunk)
                hashed.result()
        bounds = np.concatenate(starts)
        if bounds[-1] != size:  # the last line has no line break
            bounds = np.append(bounds, size)
        self.digest = digest.hexdigest()
        """SHA-256 of the content."""
        # The file stays open, so that its rows remain those of the index if another file takes its name.
        self._file = os.open(path, os.O_RDONLY)
        self._state = _state(os.fstat(self._file))
        # Drop blank lines. Only short ones can be blank, so the others are not read again.
        self._starts, self._ends = bounds[:-1], bounds[1:]
        blank = []
        for i in np.flatnonzero(self._ends - self._starts <= _MAX_BLANK_BYTES).tolist():
            start, end = int(self._starts[i]), int(self._ends[i])
            if content_of(os.pread(self._file, end - start, start), is_first=i == 0) is None:
                blank.append(i)
        self._numbers: npt.NDArray[np.int64] | None = None  # line i has number i + 1
        if blank:
            kept = np.delete(np.arange(len(self._starts)), blank)
            self._starts, self._ends, self._numbers = self._starts[kept], self._ends[kept], kept + 1

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # not if the file could not be opened
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        """Returns the number of a line (from 1) and its content; raises DataError if the file has changed."""
        start = int(self._starts[index])
        number = int(self._numbers[index]) if self._numbers is not None else index + 1
        # Not seek and read: forked processes share the position of an open file.
        line = os.pread(self._file, int(self._ends[index]) - start, start)
        if _state(os.fstat(self._file)) != self._state:  # after reading, so that no change in between is missed
            raise DataError(f"{self.path}:{number}: {CHANGED}")
        # Blank only if it was changed within one tick of the file system's clock; then it is not valid JSON.
        return number, content_of(line, is_first=start == 0) or b""


def _state(stat: os.stat_result) -> tuple[int, int, bool]:
    return stat.st_size, stat.st_mtime_ns, stat.st_nlink > 0  # without links, the file was removed or replaced


_LOCK = threading.Lock()


def index_lines(path: Path) -> LineIndex:
    """Returns the index of a file, which is built once and again only when the file has changed."""
    stat = path.stat()
    with _LOCK:  # a second thread waits for the first one's index
        return _index(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=64)
def _index(path: Path, *_: int) -> LineIndex:
    # The other arguments are the state of the file, so that a changed file misses the cache.
    return LineIndex(path)
