# SPDX-License-Identifier: Apache-2.0
"""A directory with exactly the files that are uploaded, since SkyPilot has rules of its own for what it leaves out."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError, StorageError
from oumi.core.launcher.sky.task import SAFE_PATH
from oumi.core.launcher.upload import Upload, find_upload
from oumi.core.system.cache import cache_home
from oumi.core.system.filesystem import expanded

RULES = ".skyignore"
"""The file in which SkyPilot finds what to leave out, in any directory; without one, it reads .gitignore."""
_RUN_BY_SHELLS = re.compile(r'["$`\\\n]')


def find_uploads(job: JobConfig) -> dict[str, Upload]:
    """Returns what is uploaded by its key in the job: the working directory, and the local files of `file_mounts`."""
    uploads = {}
    if job.working_dir is not None:
        uploads["working_dir"] = find_upload(job.working_dir)
    for remote, local in job.file_mounts.items():
        path = expanded(local)
        if path.is_dir():
            uploads[f"file_mounts.{remote}"] = find_upload(local)
        elif path.is_file():
            uploads[f"file_mounts.{remote}"] = Upload(path.parent, (path.name,), path.stat().st_size)
    return uploads


@contextmanager
def staged(task: Mapping[str, Any], uploads: Mapping[str, Upload]) -> Iterator[dict[str, Any]]:
    """Yields a task whose local paths are those of a temporary directory, which shares the disk space of the files."""
    parent = cache_home() / "launch"
    if unsafe := _RUN_BY_SHELLS.search(str(parent)):  # SkyPilot puts the path between double quotes
        raise ConfigError(
            f"{parent}: SkyPilot cannot upload from a path with {unsafe[0]!r}; set OUMI_CACHE_DIR to another"
        )
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{parent}: {error.strerror}; set OUMI_CACHE_DIR to a directory for uploads") from None
    with tempfile.TemporaryDirectory(dir=parent) as root:
        changed = {**task, "file_mounts": dict(task.get("file_mounts", {}))}
        for number, (key, upload) in enumerate(uploads.items()):
            remote, directory = key.removeprefix("file_mounts."), Path(root, str(number))
            if remote != key and expanded(task["file_mounts"][remote]).is_file():
                # Its name reaches a shell of SkyPilot, those of files within a directory do not.
                (name,) = upload.names
                path = directory / (name if SAFE_PATH.fullmatch(name) else "file")
                _place(upload.root / name, path)
            else:
                path = directory
                _fill(directory, upload)
            if remote == key:
                changed["workdir"] = str(path)
            else:
                changed["file_mounts"][remote] = str(path)
        yield changed


def _fill(directory: Path, upload: Upload) -> None:
    directory.mkdir()
    for name in upload.names:
        if Path(name).name != RULES:
            _place(upload.root / name, directory / name)
    (directory / RULES).write_text(f"/{RULES}\n")  # all but itself is uploaded


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or another owner's file
        try:
            shutil.copy2(source, target, follow_symlinks=False)
        except OSError as error:
            raise StorageError(f"{source}: cannot be copied to {target.parent}: {error.strerror}") from None
