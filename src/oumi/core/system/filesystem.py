# SPDX-License-Identifier: Apache-2.0
"""What not every file system has: the only place that locks, links, syncs and replaces files, and sets their mode.

NFS, SMB, exFAT, FUSE and mounts of object stores each lack some of it. Imports no torch.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from oumi.core.errors import OutputError, StorageError
from oumi.core.log import logger

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITER = "inline_container"
"""Part of the message with which `torch.save` reports a failed write, such as on a full disk."""
_FAILED = (*_DISK_FULL, errno.EIO)
"""Errors of a file system that has a feature, but fails."""

REPLACED = ".replaced-"
"""Prefix of an old file or directory while a new one takes its place."""


def expanded(path: str) -> Path:
    """Returns a path with the home directory in place of `~`; unchanged if there is none, so that it is not found."""
    return Path(os.path.expanduser(path))


def can_write(directory: Path) -> bool:
    """Returns True if files can be written to a directory, which is created if it is missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def lock(descriptor: int, path: Path, waits: bool = True) -> None:
    """Locks an open file for this process, until it is closed; warns if its file system has no locks.

    Raises:
        BlockingIOError: Another process has locked it, and `waits` is False.
    """
    # flock, since the system releases it when the process ends, also when it is killed.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        reason = error.strerror
        logger.warning("%s cannot be locked (%s): let no other process use this directory", path.parent, reason)


def sync(path: Path) -> None:
    """Syncs a file or a folder to disk, where the file system can do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some file systems do not open folders
            return
        raise
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Syncs an open file to disk, where the file system can do so."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _FAILED:
            raise


def replace(source: Path, target: Path) -> None:
    """Renames a file into the place of another one, which is unchanged if that fails."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno in (*_FAILED, errno.EROFS) or not (source.is_file() and target.is_file()):
            raise
        # SMB and FUSE may refuse to rename over a file.
        replaced = target.with_name(f"{REPLACED}{target.name}")
        replaced.unlink(missing_ok=True)  # of a process that was killed here
        target.rename(replaced)
        try:
            source.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        replaced.unlink()


def alias(name: Path, target: str) -> None:
    """Gives a file of the same folder a second name, in place of an older one; none where there are no links."""
    name.unlink(missing_ok=True)
    try:
        name.symlink_to(target)
    except OSError:
        try:
            name.hardlink_to(name.with_name(target))
        except OSError as error:
            logger.info("%s is left out: the file system has no links (%s)", name.name, error.strerror)


def set_mode(path: Path, mode: int) -> None:
    """Sets the permissions of a file; on file systems without them, all files have those of the mount."""
    with suppress(OSError):
        path.chmod(mode)


def check_features(directory: Path) -> None:
    """Checks that a directory takes what every run needs: folders that are renamed, and files that grow.

    Raises:
        OutputError: It does not; says which.
    """
    probe, renamed = directory / f".tmp-probe-{os.getpid()}", directory / f".tmp-probe-{os.getpid()}-renamed"
    action = "create folders"
    try:
        probe.mkdir()
        action = "write files"
        (probe / "file").write_bytes(b"1")
        action = "append to files"
        with (probe / "file").open("ab") as file:
            file.write(b"2")
        action = "rename files"
        (probe / "file").rename(probe / "other")
        action = "rename folders"
        probe.rename(renamed)
    except OSError as error:
        raise OutputError(
            f"training.output_dir: cannot {action} in {directory}: {error.strerror}. Checkpoints need that; name a "
            "directory on another file system"
        ) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def storage_errors(target: Path, remedy: str = "") -> Iterator[None]:
    """Converts errors of the file system to StorageError, with the file and the free space.

    Args:
        target: The file or directory that is written, named if the error names none.
        remedy: What else to do about a full disk, such as `set TMPDIR`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise  # an error of the network, not of a file
        details = ""
        if error.errno in _DISK_FULL:
            details = _free(target) + (f"; {remedy}" if remedy else "")
        raise StorageError(f"{error.filename or target}: {error.strerror}{details}") from error
    except SafetensorError as error:  # safetensors raises it instead of OSError, for example if the disk is full
        raise StorageError(f"{target}: could not be saved: {error}") from error
    except RuntimeError as error:
        if _TORCH_WRITER not in str(error):
            raise
        raise StorageError(f"{target}: could not be saved: torch.save failed to write{_free(target)}") from error


def _free(target: Path) -> str:
    """Returns the free space at a path as the end of a message; nothing if the disk is not available any more."""
    with suppress(OSError):  # the first error must still be reported
        return f"; {shutil.disk_usage(target.parent).free / 1e6:,.0f} MB are free there"
    return ""
