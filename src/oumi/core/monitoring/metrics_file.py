# SPDX-License-Identifier: Apache-2.0
"""Every record as a line of JSON, whatever else is switched on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from oumi.core.checkpoint.store import storage_errors
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.run import Progress

NAMES = ("metrics.jsonl", "metrics_rank0000.jsonl")
"""The file, and the name by which Oumi's tools know it: a link to the first."""


class MetricsFile(Sink):
    """Writes `metrics.jsonl`, one object a step; each line is on its way to disk when the step ends."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._path = Path()

    def start(self, run: Progress) -> None:
        """Opens the file; a resumed run drops the lines of steps that it takes again."""
        path = self._path = run.plan.output_dir / NAMES[0]
        kept = [line for line in _lines(path) if _step(line) <= run.state.step] if run.state.step else []
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text("".join(kept))
        unfinished.replace(path)
        alias = run.plan.output_dir / NAMES[1]
        alias.unlink(missing_ok=True)
        os.symlink(path.name, alias)
        self._file = path.open("ab", buffering=0)

    def step(self, run: Progress, record: Record) -> None:
        self._write(record)

    def measured(self, run: Progress, record: Record) -> None:
        self._write(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, record: Record) -> None:
        assert self._file is not None, "start opens the file"
        with storage_errors(self._path):
            self._file.write((json.dumps(record) + "\n").encode())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """Returns the step of a line; a line that a killed run left half-written counts as never."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
