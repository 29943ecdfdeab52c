# SPDX-License-Identifier: Apache-2.0
"""A cloud written for Oumi, with the members that Oumi documents and no others, works with every call and command."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from oumi.core.configs import JobConfig, JobResources
from oumi.core.errors import ConfigError
from oumi.core.launcher import BaseCloud, BaseCluster, JobState, JobStatus, LauncherError
from oumi.core.launcher.launcher import Launcher
from oumi.core.registry import CLOUDS, register_cloud_builder
from tests.fork_server import run_python

OWN_CLOUD = '''
import io, subprocess, sys
from pathlib import Path
from oumi.core.launcher import BaseCloud, BaseCluster, JobState, JobStatus
from oumi.core.registry import register_cloud_builder


class Cluster(BaseCluster):
    """Runs a job at once; what is known of it is a directory of files."""

    def __init__(self, name):
        self._name = name

    def name(self):
        return self._name

    def get_job(self, job_id):
        return next((job for job in self.get_jobs() if job.id == job_id), None)

    def get_jobs(self):
        return [self._status(path.name) for path in sorted(Path(self._name).glob("*"))]

    def _status(self, job_id):
        code = int((Path(self._name) / job_id).read_text())
        state = JobState.FAILED if code else JobState.SUCCEEDED
        return JobStatus("a job", job_id, "ENDED", "", f"code {code}", done=True, state=state)

    def cancel_job(self, job_id):
        job = self.get_job(job_id)
        job.status = "CANCELED"
        return job

    def run_job(self, job):
        path = Path(self._name) / str(len(self.get_jobs()))
        with open("output", "w") as output:
            path.write_text(str(subprocess.run(job.run, shell=True, stdout=output, check=False).returncode))
        return self._with_cluster(self._status(path.name))

    def _with_cluster(self, status):
        status.cluster = self._name
        return status

    def stop(self):
        print("stop is called")

    def down(self):
        print("down is called")

    def get_logs_stream(self, cluster_name, job_id=None):
        if Path("silent").exists():
            raise NotImplementedError
        return open("output")


class Cloud(BaseCloud):
    def up_cluster(self, job, name, **kwargs):
        Path(name).mkdir()  # which an existing cluster does not survive
        print(f"options {kwargs}", file=sys.stderr)
        return Cluster(name).run_job(job)

    def get_cluster(self, name):
        return next((cluster for cluster in self.list_clusters() if cluster.name() == name), None)

    def list_clusters(self):
        return [Cluster(path.name) for path in sorted(Path().glob("c*")) if path.is_dir()]


@register_cloud_builder("Campus")
def build():
    return Cloud()


class Broken(Cloud):
    def list_clusters(self):
        raise OSError("the campus is closed")


@register_cloud_builder("closed")
def build_closed():
    return Broken()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUMI_DIR", str(tmp_path / "oumi"))
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", "extra.txt")
    monkeypatch.setenv("PATH", os.defpath)  # without a scheduler and SkyPilot
    monkeypatch.delenv("OUMI_SKY", raising=False)
    Path("own_cloud.py").write_text(OWN_CLOUD)
    Path("extra.txt").write_text("own_cloud.py\n")
    Path("job.yaml").write_text("resources: {cloud: campus}\nrun: echo hello; exit 3\n")
    return tmp_path


def launch(*arguments: str) -> tuple[int, str, str]:
    result = run_python("-m", "oumi", "launch", *arguments)
    return result.returncode, result.stdout, result.stderr


def test_every_command_works_with_a_cloud_of_user_code(folder: Path) -> None:
    assert launch("which")[1].splitlines()[:3] == ["aws", "azure", "campus"]
    code, output, _ = launch("plan", "-c", "job.yaml", "--cluster", "c1", "--secrets", "[TOKEN]")
    assert (code, "1. Give the job to Cloud, for cluster c1" in output) == (0, True)
    assert "! secrets.TOKEN: the values of secrets are not passed on" in output
    code, output, error = launch("up", "-c", "job.yaml", "--cluster", "c1", "--idle-minutes-to-autostop", "5")
    assert (code, output) == (1, "hello\n")
    assert error.splitlines() == [
        "options {'idle_minutes_to_autostop': 5}", "job 0 on c1: failed (ENDED), code 3",
        "job 0 on c1: failed (ENDED), code 3",
    ]  # fmt: skip
    code, output, _ = launch("up", "-c", "job.yaml", "--cluster", "c1", "--run", "echo again")
    assert (code, output) == (0, "again\n")
    assert launch("run", "-c", "job.yaml", "--cluster", "c1", "--run", "true")[0] == 0
    rows = launch("status", "--cloud", "campus")[1].splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["campus", "0"], ["campus", "1"], ["campus", "2"]]
    assert launch("status", "--cluster", "c1", "--id", "1")[1].splitlines()[1:] == rows[2:3]
    assert launch("queue", "--cluster", "c1")[1] == "no jobs\n"
    assert launch("logs", "--cluster", "c1", "--job-id", "1")[:2] == (0, "")
    assert "a job" in launch("cancel", "--cluster", "c1", "--id", "1")[1]
    assert launch("stop", "--cluster", "c1")[1] == "stop is called\nstopped c1\n"
    assert launch("down", "--cluster", "c1")[1] == "down is called\nc1 is down\n"


def test_a_cloud_of_user_code_that_fails_does_not_hide_the_others(folder: Path) -> None:
    launch("up", "-c", "job.yaml", "--cluster", "c1")
    Path("c2").mkdir()
    Path("c2/0").write_text("no number")
    code, output, error = launch("status")
    assert (code, "campus  " in output) == (0, True)
    assert "closed: OSError: the campus is closed" in error
    assert "c2: ValueError: invalid literal" in error


def test_a_cluster_that_hands_out_no_output_is_followed_to_the_end_of_the_job(folder: Path) -> None:
    Path("silent").touch()
    code, output, error = launch("up", "-c", "job.yaml", "--cluster", "c1")
    assert (code, output) == (1, "")
    assert error.splitlines()[-2:] == [
        "cluster c1 does not hand out the output of its jobs; waiting for the end of job 0",
        "job 0 on c1: failed (ENDED), code 3",
    ]
    code, _, error = launch("logs", "--cluster", "c1", "--cloud", "campus")
    assert (code, error) == (69, "Error: cluster c1 does not hand out the output of its jobs\n")


class MinimalCluster(BaseCluster):
    """Keeps its jobs in memory, and changes their states in place, as the guide of Oumi does."""

    def __init__(self) -> None:
        self._jobs: list[JobStatus] = []

    def name(self) -> str:
        return "only"

    def get_jobs(self) -> list[JobStatus]:
        return self._jobs

    def get_job(self, job_id: str) -> JobStatus | None:
        return next((job for job in self._jobs if job.id == job_id), None)

    def cancel_job(self, job_id: str) -> JobStatus:
        job = self._jobs[int(job_id)]
        job.status, job.state, job.done = "CANCELED", JobState.CANCELLED, True
        return job

    def run_job(self, job: JobConfig) -> JobStatus:
        self._jobs.append(JobStatus(str(job.name), str(len(self._jobs)), "RUNNING", "", "", False, JobState.RUNNING))
        self._jobs[-1].cluster = self.name()
        return self._jobs[-1]

    def stop(self) -> None:
        self.down()

    def down(self) -> None:
        for job in self._jobs:
            self.cancel_job(job.id)

    def get_logs_stream(self, cluster_name: str = "", job_id: str | None = None) -> io.StringIO:  # type: ignore[override]
        return io.StringIO(f"{cluster_name} {job_id}\n")


class MinimalCloud(BaseCloud):
    def __init__(self) -> None:
        self._cluster = MinimalCluster()

    def up_cluster(self, job: JobConfig, name: str | None) -> JobStatus:  # type: ignore[override]
        return self._cluster.run_job(job)

    def get_cluster(self, name: str) -> BaseCluster | None:
        return self._cluster if name == "only" else None

    def list_clusters(self) -> list[BaseCluster]:
        return [self._cluster]


@pytest.fixture
def minimal() -> Iterator[str]:
    register_cloud_builder("minimal")(MinimalCloud)
    yield "minimal"
    CLOUDS._parts.pop("minimal")


def test_the_calls_of_python_work_with_the_documented_members_alone(minimal: str) -> None:
    launcher, job = Launcher(), JobConfig(name="test", resources=JobResources(cloud=minimal), run="true")
    cluster, status = launcher.up(job, "only")
    assert (cluster.name(), status.cluster, status.state) == ("only", "only", JobState.RUNNING)
    assert launcher.run(job, "only").id == "1"
    assert "".join(launcher.logs(minimal, "only", "0")) == "only 0\n"
    assert launcher.cancel("0", minimal, "only").state is JobState.CANCELLED
    launcher.down(minimal, "only")
    assert [item.done for item in launcher.status(minimal)[minimal]] == [True, True]
    with pytest.raises(ConfigError, match="unknown argument 'slots'; minimal takes none"):
        launcher.up(job, "only", slots=2)
    with pytest.raises(LauncherError, match="cluster only has no job '7'"):
        launcher.cancel("7", minimal, "only")
