# SPDX-License-Identifier: Apache-2.0
"""Checkpoint directories that are either complete or not there. Knows no torch.

A checkpoint is written beside its place, every file is forced to disk, the manifest with sizes and digests
comes last, and one rename publishes it. What fails verification later is set aside, never used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from oumi.core.errors import StorageError
from oumi.core.log import logger

MANIFEST = "MANIFEST.json"
_UNFINISHED = ".tmp-"
_REPLACED = ".replaced-"
"""Begins the name of what stood where a new directory is about to stand."""


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Returns where the checkpoint of a step stands."""
    return output_dir / f"checkpoint-{step}"


def publish(target: Path, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Writes a directory so that it is seen complete or not at all.

    Args:
        target: Where it is to stand; a directory that stands there is replaced.
        write: Fills a directory.
        facts: JSON values that the manifest holds beside the digests.

    Raises:
        StorageError: Disk full, or another failure of the file system; what stood there still stands.
    """
    unfinished = target.parent / f"{_UNFINISHED}{target.name}-{os.getpid()}"
    with storage_errors(target):
        try:
            unfinished.mkdir(parents=True)
            write(unfinished)
            seal(unfinished, facts)
            _put_in_place(unfinished, target)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def seal(directory: Path, facts: Mapping[str, Any]) -> None:
    """Forces every file of a checkpoint to disk, then adds the manifest that tells that it is whole."""
    let_others_read(directory)
    for path in _files(directory):
        _to_disk(path)
    manifest = {"facts": dict(facts), "files": {name: _describe(directory / name) for name in _names(directory)}}
    unfinished = directory / f"{MANIFEST}.tmp"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    _to_disk(unfinished)
    unfinished.replace(directory / MANIFEST)
    for folder in {path.parent for path in _files(directory)} | {directory}:
        _to_disk(folder)


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Returns the facts in a checkpoint's manifest, after every file of it was verified.

    Raises:
        StorageError: A file is missing, has another size or another digest; names the file.
    """
    manifest = _read_manifest(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise StorageError(f"{path}: missing")
        size = path.stat().st_size
        if size != expected["size"]:
            raise StorageError(f"{path}: has {size} bytes, had {expected['size']} when it was saved")
        if _describe(path)["sha256"] != expected["sha256"]:
            raise StorageError(f"{path}: its content is not what was saved")
    facts: dict[str, Any] = manifest["facts"]
    return facts


def newest_good(output_dir: Path, run_id: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint of a run that is intact, with its facts; sets broken ones aside.

    Checkpoints of another run that lie in the same place are left alone and never used. Where `run_id` is None,
    those of any run will do.
    """
    for _, checkpoint in sorted(find_checkpoints(output_dir), reverse=True):
        try:
            facts = read_facts(checkpoint)
        except StorageError as error:
            aside = checkpoint.with_name(f"broken-{checkpoint.name}-{os.getpid()}")
            checkpoint.rename(aside)
            logger.warning("%s; set aside as %s, an older checkpoint is used", error, aside.name)
            continue
        if run_id in (None, facts.get("run_id")):
            return checkpoint, facts
        logger.warning("%s is of an earlier run; it is left alone", checkpoint)
    return None


def find_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Returns (step, directory) of everything that is named as a checkpoint, in order of steps."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def clear_unfinished(output_dir: Path) -> None:
    """Deletes what killed processes left half-written or half-deleted, and puts back what they had not replaced."""
    for path in output_dir.glob(f"{_REPLACED}*"):
        target = output_dir / path.name.removeprefix(_REPLACED)
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)
    for path in output_dir.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint: it vanishes at once, its files after that."""
    vanishing = checkpoint.with_name(f"{_UNFINISHED}old-{checkpoint.name}-{os.getpid()}")
    checkpoint.rename(vanishing)
    shutil.rmtree(vanishing)


def let_others_read(directory: Path) -> None:
    """Gives files the permissions of any new file here; safetensors keeps what it writes to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turns failures of the file system into StorageError: what, where, how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise  # no matter of files
        free = ""
        with suppress(OSError):
            free = f"; {shutil.disk_usage(target.parent).free / 1e6:,.0f} MB are free there"
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(f"{error.filename or target}: {error.strerror}{free if is_full else ''}") from error
    except SafetensorError as error:  # how safetensors reports a full disk
        raise StorageError(f"{target}: could not be saved: {error}") from error


def _put_in_place(directory: Path, target: Path) -> None:
    """Renames a directory to where it is to stand; what stands there goes only when the new one stands."""
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        target.rename(replaced)
    try:
        directory.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    _to_disk(target.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = "unreadable" if path.exists() else "missing, so the checkpoint was not written whole, or not by Oumi"
        raise StorageError(f"{path}: {why}") from error
    if not isinstance(manifest, dict) or not {"facts", "files"} <= manifest.keys():
        raise StorageError(f"{path}: not a manifest")
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in _files(directory))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
