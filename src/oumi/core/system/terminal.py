# SPDX-License-Identifier: Apache-2.0
"""Output to a terminal or pipe that may be closed during a run: the only place where it may fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from oumi.core.log import logger


@contextmanager
def lasting_output() -> Iterator[None]:
    """Lets a block print to stdout and stderr even after their terminal, pipe or disk is gone.

    What cannot be written is dropped; the log file of a run has all of it.
    """
    _open_missing_descriptors()
    previous = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_LastingStream, previous)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = previous


class _LastingStream:
    """A stream of text or bytes that drops what cannot be written, after one note in the log."""

    def __init__(self, stream: IO[Any] | None) -> None:
        # Python has no stream where the process was started with a closed descriptor, as in `2>&-`.
        self._stream = stream if stream is not None else os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        self._is_lost = False

    @property
    def buffer(self) -> _LastingStream:
        """Returns the stream of bytes below a stream of text."""
        return _LastingStream(self._stream.buffer)  # type: ignore[attr-defined]  # a StringIO has none

    def write(self, text: Any) -> int:
        if not self._is_lost:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._drop(error)
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._is_lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError | ValueError) -> None:
        if isinstance(error, BlockingIOError):  # a full pipe that does not wait: only this text is lost
            return
        if isinstance(error, ValueError) and not self._stream.closed:  # such as text that cannot be encoded
            raise error
        self._is_lost = True
        # Libraries write to the descriptor itself, and Python flushes it at its end.
        with suppress(OSError, ValueError):
            if self._stream.fileno() in (1, 2):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        name = getattr(self._stream, "name", "the console")
        logger.warning("%s cannot be written to any more (%s); the run goes on without it", name, error)


def _open_missing_descriptors() -> None:
    """Opens those of the descriptors 0, 1 and 2 that are closed; else the next files would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
