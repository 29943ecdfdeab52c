# SPDX-License-Identifier: Apache-2.0
"""The clouds of SkyPilot behind the protocol of a cloud."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from oumi.core.configs import JobConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, Problem
from oumi.core.launcher.cloud import (
    FINAL_STATES,
    BaseCloud,
    BaseCluster,
    JobState,
    JobStatus,
    LauncherError,
    LaunchPlan,
    MissingToolError,
)
from oumi.core.launcher.script import secret_values, unset_secrets
from oumi.core.launcher.sky.process import SkyProcess, find_python, how_to_install
from oumi.core.launcher.sky.staging import RULES, find_uploads, staged
from oumi.core.launcher.sky.task import INFRA, job_key, make_task, reason_not_to_stop, task_text, task_warnings
from oumi.core.launcher.upload import Upload
from oumi.core.log import logger

IDLE_MINUTES = 60
"""Idle machines are stopped after so many minutes, unless the launch says otherwise."""
_STORES = {"s3": "aws", "gcs": "gcp", "r2": "cloudflare"}
STATES = {
    "INIT": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "SETTING_UP": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "FAILED_DRIVER": JobState.FAILED,
    "FAILED_SETUP": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}
"""States of jobs in SkyPilot; another one is unknown."""
SKY = SkyProcess()
"""One for all clouds: importing SkyPilot takes seconds."""


class SkyCloud(BaseCloud):
    """A cloud that SkyPilot reaches."""

    options: ClassVar[frozenset[str]] = frozenset({"idle_minutes_to_autostop"})

    def __init__(self, cloud: str) -> None:
        """Initializes the cloud with our name of it."""
        self._cloud = cloud
        self._sky_name = INFRA.get(cloud, cloud)

    def plan(self, job: JobConfig, name: str | None, **options: object) -> LaunchPlan:
        """Returns what `up_cluster` would do; SkyPilot validates the task where it is installed."""
        minutes = _autostop(job, options)
        task, uploads = make_task(job), find_uploads(job)
        missing = [str(problem) for problem in unset_secrets(job)]
        warnings = list(_warnings(job, name, uploads))
        answer: dict[str, Any] = {}
        if find_python() is None:
            missing.insert(0, how_to_install(self._cloud))
            warnings.append("the task is not validated: SkyPilot is not installed")
        else:
            answer = self._describe(job, task, name)
            missing += answer["missing"]
        return LaunchPlan(
            steps=tuple(_steps(job, name, uploads, answer, _default_autostop(job) if minutes is None else minutes)),
            script=(f"# accepted by SkyPilot {answer['version']}\n" if answer else "") + task_text(task, job.secrets),
            warnings=tuple(warnings),
            missing=tuple(missing),
            cost_per_hour=answer.get("price"),
        )

    def up_cluster(self, job: JobConfig, name: str | None, **options: object) -> JobStatus:
        """Creates the cluster unless it is up, and runs the job on it.

        Args:
            job: The job.
            name: Name of the cluster, None for one that SkyPilot makes up.
            options: `idle_minutes_to_autostop`: stop the machines after so many idle minutes, -1 for never.
        """
        autostop = _autostop(job, options)
        task, uploads, secrets = make_task(job), find_uploads(job), secret_values(job)
        if find_python() is None:
            raise MissingToolError(f"missing: {how_to_install(self._cloud)}")
        answer = self._describe(job, task, name)
        if answer["missing"]:
            raise MissingToolError("\n".join([f"SkyPilot cannot use {self._cloud} from here:", *answer["missing"]]))
        for warning in _warnings(job, name, uploads):
            logger.warning("%s", warning)
        minutes = _default_autostop(job) if autostop is None else autostop
        for step in _steps(job, name, uploads, answer, minutes):
            logger.info("%s", step)
        if answer["price"] is not None:
            logger.info("price: $%.2f an hour", answer["price"])
        with staged(task, uploads) as uploaded, _hint_at_machines(name):
            result = SKY.call(
                "up", True, task=uploaded, secrets=secrets, cluster=name, autostop=minutes,
                sets_autostop=autostop is not None,
            )  # fmt: skip
        if result["is_reused"] and (left_out := _created_once(job)):
            logger.warning("%s: not read, since the cluster is up; they are for its creation", left_out)
        return SkyCluster(result["cluster"], "UP").job_status(result["id"], job.name or "")

    def list_clusters(self) -> list[BaseCluster]:
        """Returns the clusters of this cloud, stopped ones too."""
        return [
            SkyCluster(record["name"], record["state"], record["price"])
            for record in SKY.clusters()
            if record["cloud"] == self._sky_name
        ]

    def _describe(self, job: JobConfig, task: dict[str, Any], name: str | None) -> dict[str, Any]:
        """Returns what SkyPilot says about a task without starting anything; raises ConfigError if it is invalid."""
        stores = sorted({_STORES[mount.store] for mount in job.storage_mounts.values()})
        answer: dict[str, Any] = SKY.call("describe", task=task, cloud=self._sky_name, cluster=name, stores=stores)
        if answer["problems"]:
            keys = [(job_key(key, job), message) for key, message in answer["problems"]]
            raise ConfigError([Problem(key, message, _place(job, key)) for key, message in keys], "job")
        if any("pip install" in message for message in answer["missing"]):
            answer["missing"].append(
                f"packages are needed in SkyPilot's environment: {find_python()} -m pip install ..."
            )
        return answer


class SkyCluster(BaseCluster):
    """Machines that SkyPilot started."""

    def __init__(self, name: str, state: str, price: float | None = None) -> None:
        """Initializes the cluster with SkyPilot's state of it and its price in US dollars an hour."""
        self._name, self._state, self._price = name, state, price

    def name(self) -> str:
        return self._name

    def state(self) -> str:
        return self._state

    def get_jobs(self) -> list[JobStatus]:
        """Returns the jobs of machines that are up; others cannot be asked."""
        if self._state != "UP":
            return []
        return sorted((self._status(record) for record in SKY.call("queue", cluster=self._name)), key=_age)

    def run_job(self, job: JobConfig) -> JobStatus:
        """Runs a job without its setup and its mounts, which a cluster gets when it is created."""
        uploads = {key: upload for key, upload in find_uploads(job).items() if key == "working_dir"}
        secrets = secret_values(job)
        for key, upload in uploads.items():
            logger.info("uploads %s: %s", key, upload)
        if left_out := _created_once(job):
            logger.warning("%s: not read by `run`; they are for the creation of a cluster", left_out)
        task = {key: value for key, value in make_task(job).items() if key != "file_mounts"}
        with staged(task, uploads) as uploaded:
            result = SKY.call("run", True, task=uploaded, secrets=secrets, cluster=self._name)
        self._state = "UP"
        return self.job_status(result["id"], job.name or "")

    def cancel_job(self, job_id: str) -> JobStatus:
        SKY.call("cancel", cluster=self._name, job_id=_number(job_id))
        return self.job_status(job_id, "")

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        return SKY.stream("logs", cluster=self._name, job_id=_number(job_id), follow=follow)

    def stop(self) -> None:
        """Stops the machines and waits for it; they keep their disks."""
        SKY.call("stop", True, cluster=self._name)
        self._state = "STOPPED"

    def down(self) -> None:
        """Gives the machines back with their disks, and waits for it."""
        SKY.call("down", True, cluster=self._name)
        self._state = "DOWN"

    def job_status(self, job_id: str | int, name: str) -> JobStatus:
        """Returns the status of a job that the cluster has taken."""
        unseen = JobStatus(name, str(job_id), "SUBMITTED", self._name, state=JobState.PENDING)
        return self.get_job(str(job_id)) or unseen

    def _status(self, record: dict[str, Any]) -> JobStatus:
        state = STATES.get(record["status"], JobState.UNKNOWN)
        return JobStatus(
            name=record["name"] or "",
            id=str(record["id"]),
            status=record["status"],
            cluster=self._name,
            metadata={"FAILED_SETUP": "setup failed", "FAILED_DRIVER": "SkyPilot's process of the job ended"}.get(
                record["status"], ""
            ),
            done=state in FINAL_STATES,
            state=state,
            cost_per_hour=self._price,
            submit_time=_time(record["submitted"]),
            start_at=_time(record["start"]),
            end_at=_time(record["end"]),
        )


@contextmanager
def _hint_at_machines(name: str | None) -> Iterator[None]:
    """Says after a launch that failed or was cancelled that machines may go on, which cost."""
    down = f"oumi launch down --cluster {name or '...'}"
    hint = f"machines may have been started: see `oumi launch status`, end them with `{down}`"
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("cancelled; %s", hint)
        raise
    except LauncherError as error:
        raise type(error)(f"{error}\n{hint}") from error


def _steps(
    job: JobConfig, name: str | None, uploads: dict[str, Upload], answer: dict[str, Any], minutes: int | None
) -> Iterator[str]:
    if answer.get("server"):
        yield f"SkyPilot's server at {answer['server']} starts the job, with its accounts"
    for key, upload in uploads.items():
        yield f"upload {key} from {upload}"
    resources = job.resources
    what = answer.get("machine") or resources.instance_type or resources.accelerators or "the cheapest"
    count = "1 machine" if job.num_nodes == 1 else f"{job.num_nodes} machines"
    spot = ", spot" if resources.use_spot else ""
    yield f"start {count} of {resources.cloud} ({what}{spot})" + (f", unless {name} is up" if name else "")
    if answer and answer["price"] is None and resources.cloud.lower() not in INFRA:  # those are the user's own machines
        yield "the price is not known here: SkyPilot's catalog has none, or cannot be downloaded"
    yield "run the script `setup` once, then `run`" if job.setup else "run the script `run`"
    if minutes not in (None, -1):
        yield f"stop the machines after {minutes} idle minutes; their disks are kept and cost until `oumi launch down`"


def _warnings(job: JobConfig, name: str | None, uploads: dict[str, Upload]) -> Iterator[str]:
    yield from task_warnings(job)
    if reason := reason_not_to_stop(job):
        yield f"{reason}: they run until `oumi launch down --cluster {name or '...'}`"
    for key, upload in uploads.items():
        if any(Path(name).name == RULES for name in upload.names):
            yield f"{key}: {RULES} is neither read nor uploaded; .oumiignore and .gitignore say what is left out"


def _created_once(job: JobConfig) -> str:
    """Returns the keys of a job that SkyPilot reads only when it creates a cluster."""
    return ", ".join(key for key in ("setup", "file_mounts", "storage_mounts") if getattr(job, key))


def _default_autostop(job: JobConfig) -> int | None:
    return None if reason_not_to_stop(job) else IDLE_MINUTES


def _autostop(job: JobConfig, options: dict[str, object]) -> int | None:
    """Returns the idle minutes that a launch names, None if it names none; raises ConfigError for a wrong number."""
    known = "idle_minutes_to_autostop"
    minutes = options.get(known)
    if minutes is None:
        return None
    if not isinstance(minutes, int) or minutes < -1:
        raise ConfigError(f"{known}: expected minutes, or -1 for never, got {minutes!r}")
    if minutes != -1 and (reason := reason_not_to_stop(job)):
        raise ConfigError(f"{known}: {reason}")
    return minutes


def _place(job: JobConfig, key: str) -> str:
    # A path in a mapping has dots of its own.
    return locate(job, key.partition(".")[0] if "mounts" in key else key)


def _number(job_id: str) -> int:
    if not job_id.isdecimal():
        raise LauncherError(f"no job '{job_id}': SkyPilot's jobs have numbers")
    return int(job_id)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _age(job: JobStatus) -> int:
    return int(job.id)
