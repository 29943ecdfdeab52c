# SPDX-License-Identifier: Apache-2.0
"""Clusters with a scheduler of batch jobs: Slurm and PBS, on this machine or behind ssh."""

from __future__ import annotations

import os
import shutil

from oumi.core.configs import JobConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, Problem, did_you_mean
from oumi.core.launcher.batch_cluster import BatchCluster
from oumi.core.launcher.cloud import BaseCloud, BaseCluster, JobStatus, LaunchPlan, MissingToolError
from oumi.core.launcher.known_clusters import KnownClusters
from oumi.core.launcher.machine import Machine
from oumi.core.launcher.script import unset_secrets
from oumi.core.launcher.sites import SITES
from oumi.core.launcher.submission import prepare
from oumi.core.log import logger
from oumi.core.system.filesystem import expanded

HERE = "here"
"""Name of the cluster whose scheduler is on this machine."""


class BatchCloud(BaseCloud):
    """A site, or any cluster with its scheduler: `here`, `user@host`, or `queue.user` at a site that has queues."""

    def __init__(self, name: str) -> None:
        """Initializes the cloud with a name of `SITES`."""
        self._name, self._site = name, SITES[name]

    def plan(self, job: JobConfig, name: str | None, **options: object) -> LaunchPlan:
        """Returns what `up_cluster` would do; the cluster is not asked."""
        cluster = self._cluster_of(job, name)
        missing = cluster.machine.missing_tools()
        if not cluster.machine.host and shutil.which(self._site.scheduler.program) is None:
            missing.append(self._no_scheduler())
        submission = prepare(job, self._site, cluster.machine, cluster.queue)
        missing += [str(problem) for problem in unset_secrets(job)]
        return LaunchPlan(
            steps=tuple(submission.steps),
            script=str(submission.script),
            warnings=(*cluster.user_warning(job), *submission.script.warnings),
            missing=tuple(missing),
        )

    def up_cluster(self, job: JobConfig, name: str | None, **options: object) -> JobStatus:
        """Submits a job; raises as `plan`, `BatchCluster.run_job`, and if this machine has no scheduler."""
        cluster = self._cluster_of(job, name)
        if not cluster.machine.host and shutil.which(self._site.scheduler.program) is None:
            raise MissingToolError(self._no_scheduler())
        return cluster.run_job(job)

    def list_clusters(self) -> list[BaseCluster]:
        """Returns this machine if it has the scheduler, and the clusters that are declared or were used from here."""
        names = [*self._declared_names(), *self._known().names()]
        if not self._site.queues and shutil.which(self._site.scheduler.program):
            names = [HERE, *names]
        return [self._cluster(name) for name in dict.fromkeys(names)]

    def get_cluster(self, name: str) -> BaseCluster | None:
        """Returns a cluster; None for `here` without its scheduler. Raises ConfigError for what is no name."""
        # Any account is a cluster, whether a job was started there from this machine or not.
        if name == HERE and name not in [cluster.name() for cluster in self.list_clusters()]:
            return None
        return self._cluster(name)

    def _cluster_of(self, job: JobConfig, name: str | None) -> BatchCluster:
        """Returns the cluster for a job; raises ConfigError if neither the name nor the job tells the user."""
        if self._site.queues and not name:
            if not job.user:
                message = f"required on {self._name} at launch, or --cluster {self._site.queues[0]}.<user>"
                raise ConfigError([Problem("user", message, locate(job, "user"))], "job")
            name = f"{self._site.queues[0]}.{job.user}"
        if not self._site.queues and name and name != HERE and "@" not in name and job.user:
            name = f"{job.user}@{name}"
        return self._cluster(name or HERE)

    def _cluster(self, name: str) -> BatchCluster:
        if not self._site.queues:
            return BatchCluster(name, self._site, Machine("" if name == HERE else name), self._known())
        queue, _, user = name.partition(".")
        if queue not in self._site.queues or not user:
            hint = did_you_mean(queue, self._site.queues)
            raise ConfigError(
                f"--cluster: '{name}' is no cluster of {self._name}{hint or ':'} expected <queue>.<user> with a queue "
                f"of {', '.join(self._site.queues)}"
            )
        return BatchCluster(name, self._site, Machine(f"{user}@{self._site.host}"), self._known(), queue)

    def _no_scheduler(self) -> str:
        scheduler = self._site.scheduler
        return (
            f"`{scheduler.program}` of {scheduler.name} is not on PATH of this machine: name a cluster by "
            "--cluster user@host, its login node"
        )

    def _known(self) -> KnownClusters:
        return KnownClusters(expanded(os.environ.get("OUMI_DIR") or "~/.oumi") / "launcher" / f"{self._name}.clusters")

    def _declared_names(self) -> list[str]:
        """Returns the clusters of OUMI_SLURM_CONNECTIONS; those that are none are told, and left out."""
        text = os.environ.get("OUMI_SLURM_CONNECTIONS", "") if self._name == "slurm" else ""
        names = []
        for name in (part.strip() for part in text.split(",") if part.strip()):
            try:
                Machine(name)
            except ConfigError:
                logger.warning("OUMI_SLURM_CONNECTIONS: '%s' is left out: expected user@host", name)
            else:
                names.append(name)
        return names
