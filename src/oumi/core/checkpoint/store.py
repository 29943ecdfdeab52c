# SPDX-License-Identifier: Apache-2.0
"""Checkpoint directories that are either complete or absent. Imports no torch.

A checkpoint is written to a temporary directory and every file is synced to disk. The manifest with sizes and digests
is written last, and one rename publishes the directory. A checkpoint that fails verification later is renamed, and is
never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oumi.core.errors import OutputError, StorageError
from oumi.core.log import logger
from oumi.core.system.filesystem import REPLACED, replace, set_mode, storage_errors, sync

MANIFEST = "MANIFEST.json"
UNFINISHED = ".tmp-"


def checkpoint_path(output_dir: Path, step: int) -> Path:
    """Returns the directory of the checkpoint of a step."""
    return output_dir / f"checkpoint-{step}"


def publish(target: Path, write: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Writes a directory that readers see either complete or not at all.

    Args:
        target: The directory; an existing one is replaced.
        write: Writes the files into the directory that is its argument.
        facts: JSON values for the manifest.

    Raises:
        StorageError: Disk full, or another failure of the file system; an existing directory is unchanged.
    """
    # In the same folder, since a rename is atomic only within one file system.
    unfinished = target.parent / f"{UNFINISHED}{target.name}-{os.getpid()}"
    with storage_errors(target):
        try:
            unfinished.mkdir(parents=True)
            write(unfinished)
            seal(unfinished, facts)
            _put_in_place(unfinished, target)
        except BaseException:  # also KeyboardInterrupt: an unfinished checkpoint can be large
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def write_new(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory that is there complete or not at all, and that replaces nothing.

    Args:
        target: The directory, which must not exist yet, or be empty.
        write: Writes the files into the directory that is its argument.

    Raises:
        OutputError: `target` is a file, or a directory that is not empty.
        StorageError: Disk full, or another failure of the file system.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise OutputError(f"{target} exists already, and is not replaced; name another directory")
    # Without the number of the process, so that the same command deletes what a killed one has left.
    unfinished = target.parent / f"{UNFINISHED}{target.name}"
    with storage_errors(target):
        try:
            recreate(unfinished)
            write(unfinished)
            apply_umask(unfinished)
            for path in _files(unfinished):
                sync(path)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    sync(target.parent)


def seal(directory: Path, facts: Mapping[str, Any]) -> None:
    """Syncs every file of a directory to disk, then writes the manifest, which marks the directory as complete."""
    apply_umask(directory)
    # In this order: after a power failure, a manifest on disk means that all files are on disk.
    for path in _files(directory):
        sync(path)
    files = {path.relative_to(directory).as_posix(): _describe(path) for path in _files(directory)}
    manifest = {"facts": dict(facts), "files": dict(sorted(files.items()))}
    unfinished = directory / f"{MANIFEST}.tmp"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    sync(unfinished)
    replace(unfinished, directory / MANIFEST)
    # fsync of a file does not sync its name, which is in the folder.
    for folder in {path.parent for path in _files(directory)} | {directory}:
        sync(folder)


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Returns the facts in a checkpoint's manifest after verifying every file.

    Raises:
        StorageError: A file is missing, or its size or digest differs; names the file.
    """
    manifest = _read_manifest(checkpoint)
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise StorageError(f"{path}: missing")
        size = path.stat().st_size
        if size != expected["size"]:  # checked first: cheaper, with a clearer message
            raise StorageError(f"{path}: expected {expected['size']} bytes, got {size}")
        if _describe(path)["sha256"] != expected["sha256"]:
            raise StorageError(f"{path}: the content has changed since it was saved")
    facts: dict[str, Any] = manifest["facts"]
    return facts


def newest_good(output_dir: Path, run_id: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest intact checkpoint of a run, with its facts; renames broken checkpoints.

    Checkpoints of other runs in the same directory are ignored, unless `run_id` is None.
    """
    for _, checkpoint in sorted(find_checkpoints(output_dir), reverse=True):
        try:
            facts = read_facts(checkpoint)
        except StorageError as error:
            # Not deleted, since its weights may still be useful. Renamed, so that it is not verified again.
            broken = checkpoint.with_name(f"broken-{checkpoint.name}-{os.getpid()}")
            checkpoint.rename(broken)
            logger.warning("%s; renamed to %s, an older checkpoint is used", error, broken.name)
            continue
        if run_id in (None, facts.get("run_id")):
            return checkpoint, facts
        logger.warning("%s belongs to an earlier run; ignored", checkpoint)
    return None


def find_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Returns (step, directory) of every checkpoint by its name, sorted by step; does not verify their contents."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def clear_unfinished(output_dir: Path) -> None:
    """Cleans up after killed processes: deletes partial directories, and restores what was moved away."""
    for path in output_dir.glob(f"{REPLACED}*"):
        target = output_dir / path.name.removeprefix(REPLACED)
        if os.path.lexists(target):
            _delete(path)
        else:  # killed before the new one was in its place
            path.rename(target)
    for path in output_dir.glob(f"{UNFINISHED}*"):
        _delete(path)


def recreate(directory: Path) -> None:
    """Makes an empty directory in place of what is there."""
    if os.path.lexists(directory):
        _delete(directory)
    directory.mkdir(parents=True)


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint, which is renamed first, so that a kill leaves no partial checkpoint."""
    deleted = checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}-{os.getpid()}")
    checkpoint.rename(deleted)
    _delete(deleted)


def apply_umask(directory: Path) -> None:
    """Gives weights the permissions of other new files; safetensors makes its files readable by their owner only."""
    mask = os.umask(0)  # Python can only read the umask by setting it
    os.umask(mask)
    for path in directory.rglob("*.safetensors"):
        set_mode(path, 0o666 & ~mask)


def _put_in_place(directory: Path, target: Path) -> None:
    """Renames a directory to `target`; an existing one is deleted afterwards, or restored after an error."""
    replaced = target.with_name(f"{REPLACED}{target.name}")
    if os.path.lexists(target):  # rename(2) does not replace a directory that is not empty
        target.rename(replaced)
    try:
        directory.rename(target)
    except OSError:
        if os.path.lexists(replaced):
            replaced.rename(target)
        raise
    sync(target.parent)
    if os.path.lexists(replaced):
        _delete(replaced)


def _delete(path: Path) -> None:
    """Deletes a directory; of a link, as users make to another disk, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint; raises StorageError if it is missing or invalid."""
    path = checkpoint / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = "not readable" if path.exists() else "missing; the checkpoint is incomplete, or not written by Oumi"
        raise StorageError(f"{path}: {reason}") from error
    if not isinstance(manifest, dict) or not {"facts", "files"} <= manifest.keys():
        raise StorageError(f"{path}: not a manifest")
    return manifest


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
