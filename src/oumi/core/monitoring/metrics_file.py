# SPDX-License-Identifier: Apache-2.0
"""Writes every record as a line of JSON, whatever else is enabled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.run import Progress, Sample
from oumi.core.system.filesystem import alias, replace, storage_errors

NAMES = ("metrics.jsonl", "metrics_rank0000.jsonl")
"""The file, and a link to it with the name that Oumi's tools expect."""


class MetricsFile(Sink):
    """Writes `metrics.jsonl`, one object per step."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._path = Path()

    def start(self, run: Progress) -> None:
        """Opens the file; a resumed run drops the lines after its checkpoint, whose steps it repeats."""
        self._path = run.plan.output_dir / NAMES[0]
        self._file = _opened(self._path, run.state.step)
        alias(run.plan.output_dir / NAMES[1], self._path.name)

    def step(self, run: Progress, record: Record, extra: Sequence[str] = ()) -> None:
        assert self._file is not None, "start opens the file"
        with storage_errors(self._path):
            self._file.write((json.dumps(_finite(record), allow_nan=False) + "\n").encode())

    measured = step

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class SamplesFile(Sink):
    """Writes `samples.jsonl`, one object for each row that was answered at an evaluation."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._path = Path()

    def start(self, run: Progress) -> None:
        """Opens the file; a resumed run drops the lines after its checkpoint."""
        self._path = run.plan.output_dir / "samples.jsonl"
        self._file = _opened(self._path, run.state.step)

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        assert self._file is not None, "start opens the file"
        lines = [json.dumps({"step": run.state.step, **asdict(sample)}, ensure_ascii=False) for sample in samples]
        with storage_errors(self._path):
            self._file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _opened(path: Path, step: int) -> BinaryIO:
    """Returns a file of lines with steps, opened to append, without the lines after a step; empty for step 0."""
    # Of bytes: as text, signs such as U+2028 in an answer would end a line, too.
    lines = path.read_bytes().splitlines(keepends=True) if step and path.exists() else []
    # Renamed into place, so that a kill leaves either the old file or the new one.
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(b"".join(line for line in lines if _step_of(line) <= step))
    replace(unfinished, path)
    return path.open("ab", buffering=0)  # unbuffered: a killed run keeps the lines of its last steps


def _finite(record: Record) -> dict[str, float | None]:
    """Returns the record with None for values that are not finite, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


def _step_of(line: bytes) -> float:
    """Returns the step of a line; infinity for an incomplete line of a killed run, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
