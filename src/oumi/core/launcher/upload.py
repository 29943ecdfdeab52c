# SPDX-License-Identifier: Apache-2.0
"""The files of a working directory that go to another machine: all that git would, less those of `.oumiignore`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher.cloud import MissingToolError
from oumi.core.log import logger
from oumi.core.system.filesystem import expanded

IGNORE_FILE = ".oumiignore"
CREDENTIALS = ("~/.netrc", "~/.cache/huggingface/token")
"""Files of Weights & Biases and of the Hub: most job files mount them, for whoever has them."""
_OF_A_REPOSITORY = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)


@dataclass(frozen=True)
class Upload:
    """Files of one directory."""

    root: Path
    names: tuple[str, ...]
    """Relative to the root, with `/`; links are copied as links."""
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.root}: {len(self.names):,} files, {self.num_bytes / 1e6:,.1f} MB"


def without_absent_credentials(job: JobConfig) -> tuple[JobConfig, list[str]]:
    """Returns a job without mounts of credentials that do not exist here, and a warning for each of them."""
    absent = {
        remote: local
        for remote, local in job.file_mounts.items()
        if local in CREDENTIALS and not expanded(local).exists()
    }
    mounts = {remote: local for remote, local in job.file_mounts.items() if remote not in absent}
    warnings = [f"file_mounts.{remote}: not copied: {local} does not exist here" for remote, local in absent.items()]
    return job.model_copy(update={"file_mounts": mounts}), warnings


def find_upload(working_dir: str) -> Upload:
    """Returns what is uploaded of a directory: not what `.gitignore` or `.oumiignore` name, and not `.git`.

    Raises:
        ConfigError: There is no such directory.
        MissingToolError: git is not installed.
    """
    root = expanded(working_dir).resolve()
    if not root.is_dir():
        raise ConfigError(f"working_dir: {working_dir} is not a directory")
    if shutil.which("git") is None:
        raise MissingToolError("git is needed to read .gitignore; install it with your system's package manager")
    if _git(root, ["rev-parse", "--is-inside-work-tree"], check=False) == ["true\n"]:
        names = _names(root, [])
    else:
        with tempfile.TemporaryDirectory() as empty:
            # An empty repository beside the directory, so that patterns mean what they mean to git.
            _git(root, ["init", "-q", "--bare", empty])
            names = _names(root, [f"--git-dir={empty}", f"--work-tree={root}", "-c", "core.bare=false"])
    # A repository within this one is listed as a directory, and without the slash if it is a submodule.
    nested = {name for name in names if (root / name).is_dir() and not (root / name).is_symlink()}
    if nested:
        listed = ", ".join(sorted(f"{name.rstrip('/')}/" for name in nested))
        logger.warning("not uploaded, since it is a repository of its own: %s", listed)
    files = sorted(name for name in names - nested if os.path.lexists(root / name))  # tracked ones may be deleted
    return Upload(root, tuple(files), sum((root / name).lstat().st_size for name in files))


def _names(root: Path, place: Sequence[str]) -> set[str]:
    """Returns what `.gitignore` and `.oumiignore` leave of a directory in the repository of a place."""
    names = set(_git(root, [*place, "ls-files", "-co", "--exclude-standard", "-z"]))
    if (root / IGNORE_FILE).is_file() or any(name.rpartition("/")[2] == IGNORE_FILE for name in names):
        # By directory, so that a pattern with a slash is anchored at its file and not at the repository. Tracked and
        # other files one after the other, since git mixes them up when it is asked for both.
        for kind in ("-c", "-o"):
            names -= set(_git(root, [*place, "ls-files", kind, "-i", f"--exclude-per-directory={IGNORE_FILE}", "-z"]))
    return names


def _git(root: Path, arguments: Sequence[str], check: bool = True) -> list[str]:
    """Returns the output of git, split at NUL bytes."""
    # A git that runs around this one, such as for a hook, names its own repository by variables.
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}
    result = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    if check and result.returncode:
        raise ConfigError(f"working_dir: git failed: {os.fsdecode(result.stderr).strip()}")
    return [os.fsdecode(name) for name in result.stdout.split(b"\0") if name]
