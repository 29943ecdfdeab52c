# SPDX-License-Identifier: Apache-2.0
"""The run in an output directory: its id, its result once it is complete, and the lock of its process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from oumi.core.errors import OutputError
from oumi.core.system.filesystem import check_features, lock, replace

_FILE = "run.json"
_LOCK = ".lock"


@dataclass(frozen=True)
class Identity:
    """The run in an output directory."""

    run_id: str
    began: str
    """Start of the first process of the run, in ISO 8601 with time zone."""
    finished_step: int | None = None
    """The last step, once the run is complete."""
    trajectory: Mapping[str, str] | None = None
    """The settings that determine the weights, once the run is complete."""
    data: str | None = None
    """Digest of the training rows, once the run is complete."""
    metrics: Mapping[str, float] | None = None
    """The last measured values, once the run is complete."""


def read_identity(output_dir: Path) -> Identity | None:
    """Returns the run in a directory, None if it has none."""
    path = output_dir / _FILE
    try:
        return Identity(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # TypeError: the fields of another version
        return None


def write_identity(output_dir: Path, identity: Identity) -> None:
    """Writes the run of a directory, in place of the one that it has."""
    path = output_dir / _FILE
    unfinished = path.with_suffix(".tmp")  # renamed into place, so that a kill leaves the old file or the new one
    unfinished.write_text(json.dumps(asdict(identity), indent=1) + "\n")
    replace(unfinished, path)


@contextmanager
def lock_output_dir(output_dir: Path) -> Iterator[None]:
    """Locks an output directory for this process.

    Raises:
        OutputError: The directory cannot be created or written, or another process has locked it; names the process.
    """
    # A lock that the system releases. A file that exists as long as the process runs would block it after a kill.
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"training.output_dir: cannot write to {output_dir}: {error.strerror}") from error
    try:
        try:
            lock(descriptor, output_dir / _LOCK, waits=False)
        except BlockingIOError as error:
            raise OutputError(f"training.output_dir: {output_dir} is in use by {_holder(descriptor)}") from error
        check_features(output_dir)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        with suppress(OSError):  # only for the message to another process
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Returns a description of the process that holds a lock, which it wrote into the file."""
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError):  # it has locked the file, but not yet written to it
        return "another process"
