# SPDX-License-Identifier: Apache-2.0
"""The protocol of a cloud: what runs jobs, and where. Everything that `oumi launch` does goes through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from oumi.core.configs import JobConfig
from oumi.core.errors import OumiError
from oumi.core.log import logger


class LauncherError(OumiError):
    """A job that cannot be started, found or followed."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class ClusterNotFoundError(LauncherError, ValueError):  # ValueError is what Oumi raises
    """There is no such cluster."""


class ClusterUnreachableError(LauncherError):
    """The cluster exists, and does not answer."""


class MissingToolError(LauncherError):
    """A program or a credential that the cloud needs is missing; the message says how to get it."""


class NoOutputError(LauncherError):
    """The cluster does not hand out the output of jobs."""


class JobState(StrEnum):
    """What a job does, on any cloud."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """The cloud names a state that is not known here; `JobStatus.status` has its word for it."""


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass  # not frozen: clouds written for Oumi change theirs in place
class JobStatus:
    """A job as its cloud describes it."""

    name: str
    id: str
    status: str
    """The cloud's own word for the state."""
    cluster: str
    metadata: str = ""
    """What else is known, such as why it failed."""
    done: bool = False
    state: JobState = JobState.UNKNOWN
    exit_code: int | None = None
    """Of the script, as shells have it; None until it ends and where the cloud does not tell."""
    cost_per_hour: float | None = None
    """In US dollars, of the whole cluster."""
    submit_time: datetime | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None


@dataclass(frozen=True)
class LaunchPlan:
    """What `up` would do, from what can be known without starting anything."""

    steps: tuple[str, ...]
    """A sentence each, in order."""
    script: str = ""
    """What the cloud is given: a batch script or a task. It contains no secret."""
    warnings: tuple[str, ...] = ()
    """Keys of the job that this cloud does not carry out, and the like."""
    missing: tuple[str, ...] = ()
    """What is missing here to launch it, and how to get it; empty if nothing is."""
    cost_per_hour: float | None = None
    """In US dollars, None where prices are not known."""


class BaseCluster(ABC):
    """Machines, or an account on them, that run jobs."""

    @abstractmethod
    def name(self) -> str:
        """Returns the name of the cluster."""

    @abstractmethod
    def get_jobs(self) -> list[JobStatus]:
        """Returns all jobs that the cluster still knows, oldest first."""

    @abstractmethod
    def run_job(self, job: JobConfig) -> JobStatus:
        """Submits a job and returns its status; raises LauncherError if the cluster does not take it."""

    @abstractmethod
    def cancel_job(self, job_id: str) -> JobStatus:
        """Ends a job with all of its processes and returns its status; a job that has ended stays as it is."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all jobs and stops the machines, which keep their disks, where the cloud has any to stop."""

    @abstractmethod
    def down(self) -> None:
        """Gives everything back; ends all jobs."""

    def state(self) -> str:
        """Returns the cloud's own word for the state of the machines, empty where it has none."""
        return ""

    def get_job(self, job_id: str) -> JobStatus | None:
        """Returns the status of a job, None if the cluster does not know it."""
        return next((job for job in self.get_jobs() if job.id == job_id), None)

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        """Yields the output of a job as it comes, until the job ends if `follow`, else what there is.

        Clusters written for Oumi have `get_logs_stream` instead, which always follows.

        Raises:
            NoOutputError: The cluster does not hand out the output of jobs.
        """
        error = NoOutputError(f"cluster {self.name()} does not hand out the output of its jobs")
        if type(self).get_logs_stream is BaseCluster.get_logs_stream:
            raise error
        if not follow and (job := self.get_job(job_id)) is not None and not job.done:
            logger.info("cluster %s shows the output of job %s until it ends; Ctrl-C leaves it", self.name(), job_id)
        try:
            yield from self.get_logs_stream(self.name(), job_id)
        except NotImplementedError:
            raise error from None

    def get_logs_stream(self, cluster_name: str = "", job_id: str | None = None) -> Iterable[str]:
        """Yields the output of a job, by default of the last one, until it ends: the call that Oumi documents."""
        jobs = self.get_jobs()
        if not (job_id or jobs):
            raise LauncherError(f"cluster {cluster_name or self.name()} has no job")
        return self.logs(job_id or jobs[-1].id)


class BaseCloud(ABC):
    """A kind of place for clusters."""

    options: ClassVar[frozenset[str] | None] = None
    """Keywords that `plan` and `up_cluster` take; others are refused before they are called. None: those of the
    signature of `up_cluster`."""

    @abstractmethod
    def up_cluster(self, job: JobConfig, name: str | None, **options: object) -> JobStatus:
        """Creates the cluster unless it exists, and runs the job on it. Raises as `plan` and `run_job` do."""

    def plan(self, job: JobConfig, name: str | None, **options: object) -> LaunchPlan:
        """Returns what `up_cluster` would do; raises ConfigError for a job that this cloud can never run."""
        place = f"cluster {name}" if name else "a cluster of its choice"
        step = f"Give the job to {type(self).__name__}, for {place}; what it does then is not known before"
        # Written for Oumi, whose jobs have no such key.
        secrets = [f"secrets.{secret}: the values of secrets are not passed on to this cloud" for secret in job.secrets]
        return LaunchPlan((step,), warnings=tuple(secrets))

    @abstractmethod
    def list_clusters(self) -> list[BaseCluster]:
        """Returns the clusters, those that are stopped among them; raises LauncherError if they cannot be asked for."""

    def get_cluster(self, name: str) -> BaseCluster | None:
        """Returns the cluster of that name, None if there is none."""
        return next((cluster for cluster in self.list_clusters() if cluster.name() == name), None)
