# SPDX-License-Identifier: Apache-2.0
"""Starts jobs on clouds and looks after them: the calls of `oumi.launcher` and of `oumi launch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from inspect import Parameter, signature
from typing import TypeVar

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError, OumiError, Problem, did_you_mean
from oumi.core.launcher.cloud import (
    BaseCloud,
    BaseCluster,
    ClusterNotFoundError,
    JobStatus,
    LauncherError,
    LaunchPlan,
)
from oumi.core.launcher.clouds import build_cloud, cloud_names
from oumi.core.launcher.upload import without_absent_credentials
from oumi.core.log import logger

Result = TypeVar("Result")


class Launcher:
    """Every cloud by name, each built on first use."""

    def __init__(self) -> None:
        self._clouds: dict[str, BaseCloud] = {}

    def get_cloud(self, job_or_name: JobConfig | str) -> BaseCloud:
        """Returns the cloud of a job or of a name; raises ConfigError with the nearest name if there is none."""
        name = (job_or_name if isinstance(job_or_name, str) else job_or_name.resources.cloud).lower()
        if name not in self._clouds:
            self._clouds[name] = build_cloud(name)
        return self._clouds[name]

    def which_clouds(self) -> list[str]:
        """Returns the names of all clouds, sorted."""
        return cloud_names()

    def plan(self, job: JobConfig, cluster_name: str | None = None, **options: object) -> LaunchPlan:
        """Returns what `up` would do, without starting anything; raises ConfigError for a job that can never run."""
        job, left_out = _checked(job, cluster_name)
        cloud = self.get_cloud(job)
        _check_options(job, cloud, options)
        launch_plan = cloud.plan(job, cluster_name, **options)
        return replace(launch_plan, warnings=(*left_out, *launch_plan.warnings))

    def up(self, job: JobConfig, cluster_name: str | None = None, **options: object) -> tuple[BaseCluster, JobStatus]:
        """Creates the cluster unless it exists and runs the job on it, without waiting for its end.

        Args:
            job: The job.
            cluster_name: Name of the cluster; None leaves it to the cloud.
            options: Of the cloud: `slots` of a local queue, `idle_minutes_to_autostop` with SkyPilot.

        Raises:
            ConfigError: The job can never run on its cloud, or an option is unknown there.
            LauncherError: The cloud cannot be reached, or does not take the job.
        """
        job, left_out = _checked(job, cluster_name)
        cloud = self.get_cloud(job)
        _check_options(job, cloud, options)
        _warn(left_out)
        if type(cloud).plan is BaseCloud.plan:  # it warns of nothing itself
            _warn(list(cloud.plan(job, cluster_name).warnings))
            # Oumi calls `up_cluster` for new clusters only.
            if cluster_name and not options and (cluster := cloud.get_cluster(cluster_name)) is not None:
                return cluster, cluster.run_job(job)
        status = cloud.up_cluster(job, cluster_name, **options)
        return self._cluster(job.resources.cloud, status.cluster), status

    def run(self, job: JobConfig, cluster_name: str) -> JobStatus:
        """Runs a job on a cluster that exists; raises as `up`."""
        job, left_out = _checked(job, cluster_name)
        cluster = self._cluster(job.resources.cloud, cluster_name)
        _warn(left_out)
        return cluster.run_job(job)

    def status(
        self, cloud: str | None = None, cluster: str | None = None, id: str | None = None
    ) -> dict[str, list[JobStatus]]:
        """Returns the jobs by cloud. Of all clouds, those that cannot be asked are left out, with a message.

        Raises:
            ClusterNotFoundError: None of them has the cluster.
            LauncherError: The only cloud that was named cannot be asked.
        """
        by_cloud: dict[str, list[JobStatus]] = {}
        for name, _, jobs in self.jobs(cloud, cluster):
            by_cloud.setdefault(name, []).extend(job for job in jobs if id in (None, job.id))
        return by_cloud

    def jobs(
        self, cloud: str | None = None, cluster: str | None = None
    ) -> list[tuple[str, BaseCluster, list[JobStatus]]]:
        """Returns clusters with the names of their clouds and with their jobs, of all clouds by default."""

        def of_cluster(item: BaseCluster) -> list[JobStatus]:
            answer = _answer(item.get_jobs, is_named=cluster is not None)
            if isinstance(answer, str):
                # As with clouds: one that does not answer must not hide the jobs of the others.
                logger.warning("%s: %s", item.name(), answer)
                return []
            return answer

        if cloud and cluster:  # which need not be in the list of those that are known here
            clusters = [(cloud, self._cluster(cloud, cluster))]
        else:
            clusters = self.clusters(cloud)
        if cluster is not None:
            names = {item.name() for _, item in clusters}
            clusters = [(name, item) for name, item in clusters if item.name() == cluster]
            if not clusters:
                hint = did_you_mean(cluster, names)
                raise ClusterNotFoundError(f"no cloud that can be asked has a cluster '{cluster}'{hint}")
        jobs = _in_parallel(of_cluster, [item for _, item in clusters])
        return [(name, item, listed) for (name, item), listed in zip(clusters, jobs, strict=True)]

    def clusters(self, cloud: str | None = None) -> list[tuple[str, BaseCluster]]:
        """Returns clusters with the names of their clouds, of all clouds by default.

        Raises:
            LauncherError: The only cloud that was named cannot be asked.
        """
        names = [cloud.lower()] if cloud else self.which_clouds()

        def of_cloud(name: str) -> list[BaseCluster] | str:
            return _answer(lambda: self.get_cloud(name).list_clusters(), is_named=cloud is not None)

        clusters: list[tuple[str, BaseCluster]] = []
        unreachable: dict[str, list[str]] = {}
        for name, answer in zip(names, _in_parallel(of_cloud, names), strict=True):
            if isinstance(answer, str):
                unreachable.setdefault(answer.partition("\n")[0], []).append(name)
            else:
                clusters += [(name, item) for item in answer]
        # One cloud without credentials must not hide the jobs of the others.
        for reason, clouds in unreachable.items():
            logger.info("%s: %s", ", ".join(clouds), reason)
        return clusters

    def stop(self, cloud_name: str | None, cluster_name: str) -> None:
        """Stops the machines of a cluster; where a cloud has none to stop, ends its jobs."""
        self._cluster(cloud_name, cluster_name).stop()

    def down(self, cloud_name: str | None, cluster_name: str) -> None:
        """Gives a cluster back, with its disks; ends its jobs."""
        self._cluster(cloud_name, cluster_name).down()

    def cancel(self, job_id: str, cloud_name: str | None, cluster_name: str) -> JobStatus:
        """Ends a job and returns its status."""
        cluster = self._cluster(cloud_name, cluster_name)
        _require_job(cluster, job_id)
        return cluster.cancel_job(job_id)

    def logs(
        self, cloud_name: str | None, cluster_name: str, job_id: str | None = None, follow: bool = True
    ) -> Iterator[str]:
        """Yields the output of a job, by default of the cluster's last one, until it ends if `follow`."""
        cluster = self._cluster(cloud_name, cluster_name)
        if job_id is None:
            jobs = cluster.get_jobs()
            if not jobs:
                state = f" ({cluster.state()})" if cluster.state() else ""
                raise LauncherError(f"cluster {cluster_name}{state} has no job")
            job_id = jobs[-1].id
        else:
            _require_job(cluster, job_id)
        return cluster.logs(job_id, follow)

    def _cluster(self, cloud_name: str | None, cluster_name: str) -> BaseCluster:
        """Returns a cluster by name; raises ClusterNotFoundError if no cloud has it, ConfigError if several have."""
        if cloud_name:
            cluster = self.get_cloud(cloud_name).get_cluster(cluster_name)
            if cluster is None:
                names = [item.name() for item in self.get_cloud(cloud_name).list_clusters()]
                raise ClusterNotFoundError(
                    f"{cloud_name} has no cluster '{cluster_name}'{did_you_mean(cluster_name, names)}"
                )
            return cluster
        clusters = self.clusters()
        matches = [(cloud, cluster) for cloud, cluster in clusters if cluster.name() == cluster_name]
        if len(matches) > 1:
            clouds = ", ".join(cloud for cloud, _ in matches)
            raise ConfigError(
                f"--cluster: several clouds have a cluster '{cluster_name}'; name one by --cloud: {clouds}"
            )
        if not matches:
            hint = did_you_mean(cluster_name, [cluster.name() for _, cluster in clusters])
            raise ClusterNotFoundError(f"no cloud that can be asked has a cluster '{cluster_name}'{hint}")
        return matches[0][1]


def _checked(job: JobConfig, cluster: str | None) -> tuple[JobConfig, list[str]]:
    """Returns the job that a cloud is given, and what was left out of it; raises ConfigError if it is incomplete."""
    job.finalize_and_validate()  # one that is made in Python has not been
    if missing := job.missing_at_launch(cluster):
        raise ConfigError(missing, "job")
    return without_absent_credentials(job)


def _answer(call: Callable[[], Result], is_named: bool) -> Result | str:
    """Returns what a call returns; of a cloud or cluster that the user has not named, the reason if it fails."""
    try:
        return call()
    except Exception as error:  # clouds of user code raise anything
        if is_named:
            raise
        logger.debug("the call failed", exc_info=True)
        # With its kind, where the message is not written for users.
        return str(error) if isinstance(error, OumiError) else f"{type(error).__name__}: {error}"


def _warn(messages: list[str]) -> None:
    for message in messages:
        logger.warning("%s", message)


def _check_options(job: JobConfig, cloud: BaseCloud, options: dict[str, object]) -> None:
    names = cloud.options
    if names is None:
        parameters = signature(cloud.up_cluster).parameters.values()
        if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
            return
        names = frozenset(parameter.name for parameter in parameters) - {"job", "name"}
    known = f"{job.resources.cloud} takes {', '.join(sorted(names)) or 'none'}"
    unknown = [
        Problem("", f"unknown argument '{name}'{did_you_mean(name, names) or f'; {known}'}")
        for name in options
        if name not in names
    ]
    if unknown:
        raise ConfigError(unknown, "launch")


def _require_job(cluster: BaseCluster, job_id: str) -> None:
    if cluster.get_job(job_id) is None:
        ids = [job.id for job in cluster.get_jobs()]
        raise LauncherError(f"cluster {cluster.name()} has no job '{job_id}'{did_you_mean(job_id, ids)}")


def _in_parallel(function: Callable[..., Result], items: list) -> list[Result]:  # type: ignore[type-arg]
    """Returns the results in order; clouds are slow to answer, so all are asked at once."""
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(function, items))
