# SPDX-License-Identifier: Apache-2.0
"""Whose run an output directory holds: its id, whether it is finished, and the lock of the process that runs it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oumi.core.errors import OutputError

_FILE = "run.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class Identity:
    """The run that an output directory belongs to."""

    run_id: str
    began: str
    """When the first process of the run began, as ISO 8601 with its time zone."""
    finished_step: int | None = None
    """The last step, once the run is complete."""
    trajectory: Mapping[str, str] | None = None
    """What decided the weights of the finished run."""
    data: str | None = None
    """Digest of the rows that the finished run was trained on."""
    metrics: Mapping[str, float] | None = None
    """What the finished run measured last."""


def read_identity(output_dir: Path) -> Identity | None:
    """Returns the run that the directory belongs to, None if it is new."""
    path = output_dir / _FILE
    try:
        return Identity(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_identity(output_dir: Path, identity: Identity) -> None:
    """Makes the directory belong to a run."""
    path = output_dir / _FILE
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(asdict(identity), indent=1) + "\n")
    unfinished.replace(path)


def new_run_id() -> str:
    """Returns an id that no other run has."""
    return uuid.uuid4().hex


@contextmanager
def lock_output_dir(output_dir: Path) -> Iterator[None]:
    """Keeps other processes out of an output directory; the system lets go of it when this one ends, however it ends.

    Raises:
        OutputError: The directory cannot be made or written, or another process holds it; says which, and since when.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"training.output_dir: cannot write to {output_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"training.output_dir: {output_dir} is in use by {_holder(descriptor)}") from error
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    holder: dict[str, Any] = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%F %T"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError):
        return "another process"
