# SPDX-License-Identifier: Apache-2.0
"""A file of lines, of which any is found at once. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oumi.core.errors import DataError

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
