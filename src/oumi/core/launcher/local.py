# SPDX-License-Identifier: Apache-2.0
"""Jobs of this machine: detached processes with a registry on disk, in queues with a number of slots."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import ClassVar

from oumi.core.configs import JobConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, Problem
from oumi.core.launcher import supervisor
from oumi.core.launcher.cloud import (
    BaseCloud,
    BaseCluster,
    ClusterNotFoundError,
    JobState,
    JobStatus,
    LauncherError,
    LaunchPlan,
)
from oumi.core.launcher.local_status import job_status
from oumi.core.launcher.script import job_script, secret_values, unset_secrets
from oumi.core.launcher.supervisor import GRACE_S, JobDirectory, list_jobs, orphans, read_slots
from oumi.core.log import logger
from oumi.core.system import filesystem

DEFAULT_CLUSTER = "local"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_POLL_S = 0.1
_CHUNK_BYTES = 1 << 16
_NOT_RESERVED = ("accelerators", "cpus", "memory", "instance_type", "disk_size", "disk_tier")
_NO_MEANING = ("region", "zone", "use_spot", "image_id", "image_id_map", "config_overrides")


class LocalCloud(BaseCloud):
    """This machine. Its clusters are queues."""

    options: ClassVar[frozenset[str]] = frozenset({"slots"})

    def plan(self, job: JobConfig, name: str | None, **options: object) -> LaunchPlan:
        """Returns what `up_cluster` would do; `slots` as there."""
        cluster = LocalCluster(_cluster_dir(name or DEFAULT_CLUSTER))
        working_dir = _check(job)
        slots = _check_slots(options.get("slots")) or read_slots(cluster.path)
        steps = (
            f"Add the job to the queue '{cluster.name()}' of this machine, which runs {slots} at once and has "
            f"{sum(job.is_active() for job in list_jobs(cluster.path))} now",
            f"Run it with bash in {working_dir}, which is used in place: nothing is copied",
            f"Write its output to {cluster.path}/<job>/log",
        )
        missing = [] if shutil.which("bash") else ["bash: install it with your system's package manager"]
        missing += [str(problem) for problem in unset_secrets(job)]
        return LaunchPlan(steps, job_script(job, working_dir), tuple(_warnings(job)), tuple(missing))

    def up_cluster(self, job: JobConfig, name: str | None, **options: object) -> JobStatus:
        """Runs a job in a queue, which is created unless it exists; `slots` sets how many run there at once."""
        path = _cluster_dir(name or DEFAULT_CLUSTER)
        slots = _check_slots(options.get("slots"))
        cluster = LocalCluster(path)
        environment, script = _prepare(job)
        with _registry_locked():  # until the job is in the queue, which `down` would remove in between
            path.mkdir(mode=0o700, exist_ok=True)
            if slots is not None:
                (path / "slots.part").write_text(str(slots))
                (path / "slots.part").replace(path / "slots")
            return cluster.submit(job, environment, script)

    def list_clusters(self) -> list[BaseCluster]:
        """Returns the queues, those whose jobs have all ended among them."""
        try:
            paths = sorted(path for path in _registry().iterdir() if path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _disk_error(error) from error
        return [LocalCluster(path) for path in paths]


class LocalCluster(BaseCluster):
    """A queue of this machine: a directory with one directory for each job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def name(self) -> str:
        """Returns the name of the queue."""
        return self.path.name

    def get_jobs(self) -> list[JobStatus]:
        """Returns all jobs since the last `down`, oldest first."""
        return [job_status(job) for job in list_jobs(self.path)]

    def get_job(self, job_id: str) -> JobStatus | None:
        """Returns the status of a job, None if there is none of that id."""
        return next((job_status(job) for job in list_jobs(self.path) if job.id == job_id), None)

    def run_job(self, job: JobConfig) -> JobStatus:
        """Adds a job to the queue; raises ConfigError for one that cannot run here."""
        environment, script = _prepare(job)
        with _registry_locked():
            if not self.path.is_dir():
                raise ClusterNotFoundError(f"cluster {self.name()} is down; `oumi launch up` creates it again")
            return self.submit(job, environment, script)

    def submit(self, job: JobConfig, environment: dict[str, str], script: str) -> JobStatus:
        """Starts the supervisor of a job, with the environment that the job is to have; the registry is locked."""
        new = self.path / ".new"  # the job appears with all its files
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        (new / "script.sh").write_bytes(os.fsencode(script))
        request = {
            "name": job.name,
            "submitted": time.time(),
            "boot": supervisor.boot_id(),
            "host": socket.gethostname(),
        }
        (new / "job.json").write_text(json.dumps(request), encoding="utf-8")
        last = max((int(job.id) for job in list_jobs(self.path)), default=0)
        path = self.path / str(last + 1)
        if folder := os.environ.get("OUMI_LOGGING_DIR"):
            (new / "log").symlink_to(_log_file(folder, self.name(), path.name))
        with (new / "lock").open("wb") as lock, (new / "log").open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            new.rename(path)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-IS", supervisor.__file__, str(path), str(lock.fileno())],
                    env={**environment, supervisor.MARKER: str(path)},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.fileno()],  # held from before it starts to its end
                    start_new_session=True,
                )
            except OSError as error:  # such as an environment that is too large
                shutil.rmtree(path)
                raise LauncherError(f"the process of the job cannot be started: {error.strerror}") from error
        Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie in a process that stays
        return job_status(JobDirectory(path))

    def cancel_job(self, job_id: str) -> JobStatus:
        """Ends a job with all of its processes; a second call in the meantime leaves no time for checkpoints."""
        job = next((job for job in list_jobs(self.path) if job.id == job_id), None)
        if job is None:
            raise LauncherError(f"cluster {self.name()} has no job '{job_id}'")
        if job.is_active():
            job.request_cancel()
        _wait_for_end([job])
        status = job_status(job)
        if not status.done:
            raise LauncherError(f"job {job_id} {status.metadata}: cancel it there")
        return status

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        """Yields stdout and stderr of a job as they come, until its end if `follow`, else what there is."""
        job = JobDirectory(self.path / job_id)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        try:
            file = (job.path / "log").open("rb")
        except FileNotFoundError:  # `OUMI_LOGGING_DIR` puts it where others clean up
            raise LauncherError(f"the output of job {job_id} is no longer in {(job.path / 'log').resolve()}") from None
        with file:
            while True:
                is_last = not follow or not job.is_active()  # before it is read, so that nothing is missed
                while chunk := file.read(_CHUNK_BYTES):
                    yield decoder.decode(chunk)
                if is_last:
                    break
                time.sleep(_POLL_S)
            if rest := decoder.decode(b"", final=True):
                yield rest

    def stop(self) -> None:
        """Ends all jobs; what is known of them stays."""
        jobs = [job for job in list_jobs(self.path) if job.is_active()]
        for job in jobs:
            if not job.num_cancels():
                job.request_cancel()
        _wait_for_end(jobs)

    def down(self) -> None:
        """Ends all jobs, and removes the queue with their scripts and output."""
        while True:
            self.stop()
            with _registry_locked():
                active = [job for job in self.get_jobs() if not job.done]
                if elsewhere := [job for job in active if job.state is JobState.UNKNOWN]:
                    raise LauncherError(f"job {elsewhere[0].id} {elsewhere[0].metadata}: end it there first")
                if not active:
                    return shutil.rmtree(self.path)


def _wait_for_end(jobs: Sequence[JobDirectory]) -> None:
    """Waits until jobs that were cancelled have ended; ends the processes of those without a supervisor itself."""
    began, is_noted = time.monotonic(), False
    while jobs := [job for job in jobs if job.is_active()]:
        for job in jobs:
            if not job.is_supervised():
                _end_orphans(job)
        if not is_noted and time.monotonic() - began > 2:
            is_noted = True
            ids = ", ".join(job.id for job in jobs)
            logger.info("job %s has %.0f s to end, such as for a checkpoint; cancel it again to kill it", ids, GRACE_S)
        time.sleep(_POLL_S)


def _end_orphans(job: JobDirectory) -> None:
    """Ends the processes of a job without a supervisor; raises LauncherError if that is not possible."""
    processes, num_cancels = orphans(job.path), job.num_cancels()
    if not processes:
        return
    left = supervisor.end_processes(
        lambda: orphans(job.path), processes[0].group, GRACE_S, lambda: job.num_cancels() > num_cancels
    )
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise LauncherError(f"job {job.id}: processes {pids} cannot be killed")


def _prepare(job: JobConfig) -> tuple[dict[str, str], str]:
    """Returns the environment of a job's process, and its script."""
    script = job_script(job, _check(job))
    environment = {**os.environ, **secret_values(job)}
    environment.setdefault("PYTHONUNBUFFERED", "1")  # so that output is in the log as it comes
    # The `oumi` and the Python of this installation, where the shell has none.
    path = [environment.get("PATH", os.defpath), str(Path(sys.executable).parent)]
    environment["PATH"] = os.pathsep.join(path)
    if shutil.which("bash") is None:
        raise LauncherError("bash is not on PATH: install it with your system's package manager")
    for warning in _warnings(job):
        logger.warning("%s", warning)
    return environment, script


def _check(job: JobConfig) -> str:
    """Returns the working directory; raises ConfigError for what cannot run on this machine."""
    problems = []

    def add(key: str, message: str, target: str = "") -> None:
        problems.append(Problem(f"{key}.{target}" if target else key, message, locate(job, key)))

    for key, names in (("envs", job.envs), ("secrets", job.secrets)):
        if supervisor.MARKER in names:
            add(key, "marks the processes of a job; choose another name", supervisor.MARKER)
    if job.num_nodes > 1:
        add("num_nodes", f"got {job.num_nodes}, but this machine is one node")
    for target, source in job.file_mounts.items():
        if reason := _mount_problem(target, source):
            add("file_mounts", reason, target)
    for target in job.storage_mounts:
        add("storage_mounts", "local jobs have no buckets; mount it here yourself", target)
    working_dir = filesystem.expanded(job.working_dir or "").absolute()
    if not working_dir.is_dir():
        add("working_dir", f"{job.working_dir} is not a directory")
    if problems:
        raise ConfigError(problems, "job")
    return str(working_dir)


def _mount_problem(target: str, source: str) -> str:
    """Returns why a file is not where the job wants it; empty if it is. Files of the user are never replaced."""
    here, there = filesystem.expanded(source), filesystem.expanded(target)
    if not here.exists():
        return f"no file {source}"
    if there.exists() and here.samefile(there):
        return ""
    return f"local jobs use the files of this machine in place: use {source} itself, or link {target} to it"


def _warnings(job: JobConfig) -> list[str]:
    """Returns the keys of a job that change nothing here."""
    reasons = dict.fromkeys(_NOT_RESERVED, "is not reserved: local jobs share this machine")
    reasons |= dict.fromkeys(_NO_MEANING, "has no effect on this machine")
    values = {name: getattr(job.resources, name) for name in reasons}
    return [f"resources.{name}: {value} {reasons[name]}" for name, value in values.items() if value]


def _check_slots(slots: object) -> int | None:
    if slots is not None and (type(slots) is not int or slots < 1):
        raise ConfigError(f"slots: expected a number > 0, got {slots!r}")
    return slots


def _registry() -> Path:
    """Returns the directory of all queues of this user."""
    home = filesystem.expanded(os.environ.get("OUMI_DIR") or "~/.oumi")
    if home.parts[:1] == ("~",):
        raise LauncherError("you have no home directory: set OUMI_DIR to one for the jobs of this machine")
    # Resolved, since the path marks the processes of a job, whichever way it is named later.
    return home.resolve() / "launcher" / "local"


def _cluster_dir(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--cluster: got '{name}', expected at most 100 letters, digits, '.', '_', '@' and '-'")
    return _registry() / name


@contextmanager
def _registry_locked() -> Iterator[None]:
    """Lets one process at a time add or remove jobs."""
    try:
        _registry().mkdir(mode=0o700, parents=True, exist_ok=True)
        with (_registry() / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise _disk_error(error) from error


def _disk_error(error: OSError) -> LauncherError:
    reason = f"{error.filename or _registry()}: {error.strerror}"
    return LauncherError(f"{reason}. OUMI_DIR sets the directory of local jobs")


def _log_file(folder: str, cluster: str, job_id: str) -> Path:
    """Returns a new file for the output of a job in a folder that the user names; it stays after `down`."""
    path = filesystem.expanded(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path / f"{datetime.now():%Y_%m_%d_%H_%M_%S_%f}_{cluster}_{job_id}.log"
