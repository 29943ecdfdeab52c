# SPDX-License-Identifier: Apache-2.0
"""How a job gets to a cluster with a scheduler: its folder, the files that are uploaded into it, and its scripts."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from oumi.core.configs import JobConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, Problem
from oumi.core.launcher.batch_script import BatchScript, batch_script, quoted
from oumi.core.launcher.cloud import ClusterUnreachableError, LauncherError, MissingToolError
from oumi.core.launcher.machine import CommandError, Machine
from oumi.core.launcher.script import exports, not_storable, secret_values
from oumi.core.launcher.sites import Site
from oumi.core.launcher.upload import Upload, find_upload
from oumi.core.log import logger
from oumi.core.system.filesystem import expanded

LINKS = '"$HOME"/.oumi/jobs'
"""Folder on the cluster with a link to the folder of each job, named after the time of its launch."""
STAMP = "%Y%m%d-%H%M%S-%f"
_FILES = "files"
"""Where a job that is uploaded starts, in its folder."""


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be sent."""

    job: JobConfig
    site: Site
    machine: Machine
    queue: str
    script: BatchScript
    uploads: tuple[tuple[str, Upload], ...]
    """Folders there, and what goes into them."""
    files: tuple[tuple[str, Path], ...]
    """Paths there, and single files."""

    @property
    def steps(self) -> list[str]:
        """What will be done, a sentence each."""
        place = f"{self.machine.host}:{self._root_shown()}" if self.machine.host else self._root_shown()
        steps = [f"make a folder for the job's scripts and output below {place}"]
        steps += [f"upload {upload} to {_shown(target)}" for target, upload in self.uploads]
        steps += [
            f"upload {path}: {path.stat().st_size / 1e6:,.1f} MB to {_shown(target)}" for target, path in self.files
        ]
        if not self.machine.host:
            steps.append("upload nothing: the job starts in its working directory")
        return [*steps, *self.script.steps]

    def _root_shown(self) -> str:
        return self.site.folder.format(account=self.script.account).replace('"', "").replace("$HOME", "~")

    def send(self) -> str:
        """Uploads what the job needs; returns its folder there. Raises LauncherError if that fails."""
        secret_values(self.job)  # all must be set before anything is sent
        stamp = f"{datetime.now(UTC).strftime(STAMP)}-{secrets.token_hex(2)}"
        folder = self._make_folder(stamp)
        try:
            self._upload(folder)
        except BaseException:  # an interrupt, too, leaves nothing behind
            with suppress(LauncherError):
                self.machine.run(f"rm -r -- {shlex.quote(folder)}")
            raise
        return folder

    def submit(self, folder: str) -> str:
        """Submits the job from its folder; returns the id that the scheduler gives it.

        Raises:
            LauncherError: The machine cannot be reached, or the scheduler refuses the job.
        """
        script = self._submit_script(folder, secret_values(self.job))
        try:
            return os.fsdecode(self.machine.run(script)).strip()
        except CommandError as error:
            raise LauncherError(f"{self.site.scheduler.name} did not take the job: {_with_hint(str(error))}") from error
        except ClusterUnreachableError as error:
            message = f"{error}\nThe job may have been submitted before: see `oumi launch status`"
            raise ClusterUnreachableError(message) from error

    def _upload(self, folder: str) -> None:
        for target, upload in self.uploads:
            logger.info("uploading %s to %s:%s", upload, self.machine, target)
            self.machine.send(upload, _place(target, folder))
        for target, path in self.files:
            logger.info("uploading %s to %s:%s", path, self.machine, target)
            self.machine.send_file(path, _place(target, folder))

    def _make_folder(self, stamp: str) -> str:
        scheduler = self.site.scheduler
        folders = [target for target, _ in self.uploads] + [str(PurePosixPath(path).parent) for path, _ in self.files]
        lines = [
            "set -e",
            f"command -v {scheduler.program} > /dev/null || exit 127",
            f"root={self.site.folder.format(account=shlex.quote(self.script.account))}",
            f'mkdir -p -- "$root" {LINKS}',
            'cd -P -- "$root"',
            f"mkdir {stamp} {stamp}/{_FILES}",
            f"cd {stamp}",
            "folder=$PWD",
            *(f"(cd; mkdir -p -- {_in_shell(target)})" for target in folders),
            'printf %s "$folder"',
        ]
        try:
            return os.fsdecode(self.machine.run("\n".join(lines)))
        except CommandError as error:
            if str(error).endswith("exit code 127"):
                raise MissingToolError(
                    f"{self.machine} has no {scheduler.name}: no `{scheduler.program}` on PATH"
                ) from error
            raise

    def _submit_script(self, folder: str, values: dict[str, str]) -> str:
        scheduler, link = self.site.scheduler, f"{LINKS}/{PurePosixPath(folder).name}"
        texts = self.script.files | {"name": self.script.name, "queue": self.queue}
        lines = ["set -eo pipefail", f"cd -- {shlex.quote(folder)}"]
        lines += [f"printf %s {shlex.quote(text)} > {name}" for name, text in texts.items()]
        lines += ["date +%s > submitted", f'ln -s -- "$PWD" {link}', *self._secret_lines(values)]
        lines += [
            f"options={quoted(self.script.arguments)}",
            f'({scheduler.submit}) > id.new && [ -s id.new ] || {{ rm -r -- {link} "$PWD"; exit 1; }}',
            "mv id.new id",
            "cat id",
        ]
        return "\n".join(lines)

    def _secret_lines(self, values: dict[str, str]) -> list[str]:
        if self.site.scheduler.keeps_environment or not values:
            return exports(values)
        text = "\n".join(exports(values)) + "\n"
        return [f"(umask 077; printf %s {shlex.quote(text)} > secrets.sh)"]


def prepare(job: JobConfig, site: Site, machine: Machine, queue: str) -> Submission:
    """Returns what has to be sent to run a job; sends nothing.

    Raises:
        ConfigError: A value is wrong, a file does not exist, or the cluster can never do what the job asks for.
        MissingToolError: A program is missing that is needed to find out.
    """
    _check_texts(job)
    if job.storage_mounts:
        key = next(iter(job.storage_mounts))
        message = f"{job.resources.cloud} mounts no buckets; copy what the job needs in `setup`, and results in `run`"
        raise ConfigError([Problem(f"storage_mounts.{key}", message, locate(job, "storage_mounts"))], "job")
    folder = _FILES if machine.host else str(expanded(job.working_dir or ".").resolve())
    if not machine.host and not Path(folder).is_dir():
        problem = Problem("working_dir", f"{job.working_dir} is not a directory", locate(job, "working_dir"))
        raise ConfigError([problem], "job")
    script = batch_script(job, site, queue, folder)
    if "{account}" in site.folder and not script.account:
        line = f"{site.scheduler.directive} --account=<project>"
        raise ConfigError([Problem("setup", f"{job.resources.cloud} needs a line `{line}`")], "job")
    uploads = [(_FILES, find_upload(job.working_dir))] if machine.host and job.working_dir else []
    files: list[tuple[str, Path]] = []
    for target, source in _mounts(job, machine):
        if not target.startswith(("~", "/")):  # as with SkyPilot, below the directory in which the job starts
            target = f"{_FILES}/{target}"
        if source.is_dir():
            uploads.append((target, find_upload(str(source))))
        else:
            files.append((target, source))
    return Submission(job, site, machine, queue, script, tuple(uploads), tuple(files))


def _check_texts(job: JobConfig) -> None:
    """Raises ConfigError for names and paths that no file and no script can hold."""
    texts = {"name": job.name, "working_dir": job.working_dir}
    problems = [
        Problem(key, reason, locate(job, key)) for key, text in texts.items() if text and (reason := not_storable(text))
    ]
    for target, source in job.file_mounts.items():
        if reason := not_storable(target + source):
            problems.append(_mount_problem(job, target, reason))
        elif target.startswith("~") and not target.startswith("~/"):
            problems.append(_mount_problem(job, target, "expected a file or directory below ~/"))
    if problems:
        raise ConfigError(problems, "job")


def _mounts(job: JobConfig, machine: Machine) -> Iterator[tuple[str, Path]]:
    """Yields paths there and paths here, of all mounts."""
    problems = []
    for target, text in job.file_mounts.items():
        source = expanded(text)
        if "://" in text:
            problems.append(_mount_problem(job, target, f"{text} is no file; copy it in `setup`"))
        elif not source.exists():
            problems.append(_mount_problem(job, target, f"{text} does not exist"))
        elif machine.host:
            yield target, source
        elif expanded(target).resolve() != source.resolve():
            message = f"the job runs on this machine, where {text} is in place: use that path in `run`"
            problems.append(_mount_problem(job, target, message))
    if problems:
        raise ConfigError(problems, "job")


def _mount_problem(job: JobConfig, target: str, message: str) -> Problem:
    return Problem(f"file_mounts.{target}", message, locate(job, "file_mounts"))


def _with_hint(error: str) -> str:
    if "gres" not in error:
        return error
    return f"{error}\n`sinfo -o %G` there shows the GPUs by the names that resources.accelerators must use"


def _place(target: str, folder: str) -> str:
    """Returns a path there for rsync, to which a relative one is below the home directory."""
    if target.startswith("~/"):
        return target[2:]
    return target if target.startswith("/") else f"{folder}/{target}"


def _shown(target: str) -> str:
    return target if target.startswith(("~/", "/")) else f"{target} in that folder"


def _in_shell(target: str) -> str:
    """Returns the same path as a word of bash."""
    if target == "~" or target.startswith(("~/", "/")):  # "~" is the parent of a file's target
        return shlex.quote(target[2:] or "." if target.startswith("~") else target)
    return f'"$folder"/{shlex.quote(target)}'
