# SPDX-License-Identifier: Apache-2.0
"""The logger `oumi`: rank 0 logs to stderr, every rank to a file of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("oumi")
LEVELS = ("debug", "info", "warning", "error", "critical")

_LINE = "%(asctime)s %(levelname)s rank{rank} %(filename)s:%(lineno)d %(message)s"


class _LogFile(logging.FileHandler):
    """A log file that is given up with one line if it cannot be written, such as on a full disk."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # a method of logging
        if not self._has_failed:
            self._has_failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exception()}", file=sys.stderr)


def start_console(level: str = "info") -> None:
    """Makes rank 0 log to stderr at `level`; a second call adds no second handler."""
    logger.setLevel(level.upper())
    logger.propagate = False  # libraries configure the root logger, and each line would appear twice
    if current_rank() == 0 and not any(type(h) is logging.StreamHandler for h in logger.handlers):
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        # The console shows steps and plan by itself; what is logged at INFO would repeat them.
        console.setLevel(logging.WARNING if level.upper() == "INFO" else level.upper())
        logger.addHandler(console)


def show_info() -> None:
    """Makes the console show what is logged at INFO, too: for commands that show no steps by themselves."""
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(min(handler.level, logging.INFO))


@contextmanager
def file(output_dir: Path, level: str = "info") -> Iterator[None]:
    """Appends this rank's log to `logs/rank_0000.log` of the run."""
    rank = current_rank()
    path = output_dir / "logs" / f"rank_{rank:04d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_LINE.format(rank=rank)))
    logger.setLevel(level.upper())
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def current_rank() -> int:
    """Returns the rank of this process from RANK, which launchers set; 0 without one."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0
