# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real Slurm with two nodes, submitted here and over ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher import ClusterUnreachableError, JobState, JobStatus, LauncherError
from oumi.core.launcher.batch import BatchCloud
from oumi.core.launcher.batch_cluster import BatchCluster
from tests.core.launcher.slurm_cluster import SlurmCluster, absent_programs
from tests.fork_server import run_python
from tests.runs import losses, tiny_config, weights

pytestmark = [
    pytest.mark.skipif(bool(absent_programs()), reason=f"a Slurm for tests needs {', '.join(absent_programs())}"),
    pytest.mark.xdist_group("slurm"),
]
SSH = "root@127.0.0.1"
SOURCE = Path(__file__).parents[3] / "src"
WAIT_S = 180


@pytest.fixture(scope="module")
def running() -> Iterator[SlurmCluster]:
    folder = Path(mkdtemp(prefix="oumi-slurm-"))
    with SlurmCluster(folder) as cluster:
        yield cluster
    shutil.rmtree(folder)


@pytest.fixture
def slurm(running: SlurmCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlurmCluster:
    for name, value in running.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return running


@pytest.fixture(params=["here", SSH])
def cluster(request: pytest.FixtureRequest, slurm: SlurmCluster) -> BatchCluster:
    return cluster_of(request.param)


def cluster_of(name: str) -> BatchCluster:
    cluster = BatchCloud("slurm").get_cluster(name)
    assert isinstance(cluster, BatchCluster)
    return cluster


def job_of(run: str, **keys: object) -> JobConfig:
    return JobConfig.model_validate({"resources": {"cloud": "slurm"}, "run": run, **keys})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def end_of(cluster: BatchCluster, job: JobStatus) -> JobStatus:
    def last() -> JobStatus:
        status = cluster.get_job(job.id)
        assert status is not None
        return status

    wait_until(lambda: last().done)
    return last()


def folder_of(job: JobStatus) -> Path:
    return Path(job.metadata.rpartition("in ")[2])


def test_values_arrive_byte_for_byte_and_nothing_in_them_runs(
    cluster: BatchCluster, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = 'it\'s "$(touch ran)" `touch ran` \\ $HOME\n; touch ran; \t é \udc80 ' + "x" * 100_000
    monkeypatch.setenv("A_SECRET", secret := "s3cret-$(touch ran)-'\"\n-end")
    place = tmp_path / "a dir; touch ran 'q' $(touch ran)"
    place.mkdir()
    (place / "kept 'q' $x\n.txt").write_text("kept")
    (place / ".gitignore").write_text("left_out\n")
    (place / "left_out").write_text("")
    mounted = tmp_path / "mounted $(touch ran)"
    mounted.write_text("mounted")
    write = f"{sys.executable} -c 'import os, sys; sys.stdout.buffer.write(os.environb[sys.argv[1].encode()])'"
    check = f"{write} VALUE > value\n{write} A_SECRET | sha256sum > secret\npwd > place\n"
    is_remote = bool(cluster.machine.host)
    mounts = {"~/x y/$(touch ran)": str(mounted), "below/y": str(mounted)} if is_remote else {}
    name = "a 'name' \"$(touch ran)\" `x`; #"
    job = job_of(
        check, name=name, envs={"VALUE": value}, secrets=["A_SECRET"], working_dir=str(place), file_mounts=mounts
    )
    status = end_of(cluster, cluster.run_job(job))
    assert (status.name, status.state) == (name, JobState.SUCCEEDED), list(cluster.logs(status.id))
    where = folder_of(status) / "files" if is_remote else place
    assert (where / "value").read_bytes() == os.fsencode(value)
    expected = subprocess.run(["sha256sum"], input=secret.encode(), capture_output=True, check=True).stdout
    assert (where / "secret").read_bytes() == expected
    assert (where / "place").read_text() == f"{where}\n"
    assert (where / "kept 'q' $x\n.txt").read_text() == "kept"
    if is_remote:
        assert not (where / "left_out").exists()
        assert (slurm.home / "x y" / "$(touch ran)").read_text() == "mounted"
        assert (where / "below" / "y").read_text() == "mounted"
    assert not [*tmp_path.rglob("ran"), *slurm.home.rglob("ran")]
    assert not any(b"s3cret" in path.read_bytes() for path in slurm.home.rglob("*") if path.is_file())
    spool = slurm.run(f"scontrol show job -dd {status.id}; scontrol write batch_script {status.id} -").stdout
    assert f"JobId={status.id}" in spool
    assert "s3cret" not in spool


@pytest.mark.parametrize("cluster", [SSH, pytest.param("here", marks=pytest.mark.slow)], indirect=True)
def test_run_starts_on_every_node_and_setup_on_the_first(
    cluster: BatchCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "12345")
    lines = "#SBATCH --time=5\n#SBATCH --ntasks-per-node=2\n#SBATCH --export=NONE,A_SECRET\n"
    setup = lines + 'echo "setup on $SLURM_NODEID"; export FROM_SETUP=1\n'
    run = 'echo "run on $SLURM_NODEID of $SLURM_NNODES: $FROM_SETUP $OF_JOB ${#A_SECRET}"\n'
    job = job_of(run, setup=setup, num_nodes=2, envs={"OF_JOB": "2"}, secrets=["A_SECRET"])
    status = cluster.run_job(job)
    lines = "".join(cluster.logs(status.id)).splitlines()
    assert sorted(line for line in lines if " on " in line) == [
        "run on 0 of 2: 1 2 5", "run on 1 of 2: 1 2 5", "setup on 0",
    ]  # fmt: skip
    assert end_of(cluster, status).state == JobState.SUCCEEDED


@pytest.mark.parametrize("cluster", ["here", pytest.param(SSH, marks=pytest.mark.slow)], indirect=True)
def test_a_cancelled_job_ends_with_its_processes_and_stays_cancelled(cluster: BatchCluster, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    run = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 300"
    status = cluster.run_job(job_of(f"echo started\nbash -c '{run}'\n"))
    wait_until(pid_file.exists)
    waiting = cluster.run_job(job_of("echo never", setup="#SBATCH --begin=now+1hour\n"))
    assert (waiting.state, waiting.status) == (JobState.PENDING, "PENDING")
    assert cluster.cancel_job(waiting.id).state == JobState.CANCELLED
    assert cluster.cancel_job(status.id).state == JobState.CANCELLED
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
    assert "started\n" in "".join(cluster.logs(status.id))
    time.sleep(4)  # Slurm forgets jobs after 2 s
    assert end_of(cluster, status).state == JobState.CANCELLED
    assert cluster.cancel_job(status.id).state == JobState.CANCELLED


def test_states_outlive_what_slurm_remembers(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUMI_JOB_RESTARTS", "1")  # as in a job that came back and launches others
    cluster = cluster_of("here")
    jobs = [cluster.run_job(job_of(f"echo out$OUMI_JOB_RESTARTS; exit {code}")) for code in (0, 3)]
    forgotten = cluster.run_job(job_of("sleep 300"))
    wait_until(lambda: slurm.run("squeue -h -t running -o %i").stdout.split() == [forgotten.id])
    slurm.run(f"scancel --batch --signal=KILL {forgotten.id}")  # as if its node had lost power
    wait_until(lambda: not slurm.run("squeue -h -t all").stdout)
    states = [cluster.get_job(job.id) for job in [*jobs, forgotten]]
    assert [(job.state, job.status) for job in states if job] == [
        (JobState.SUCCEEDED, "COMPLETED"),
        (JobState.FAILED, "FAILED"),
        (JobState.UNKNOWN, "not known to Slurm any more"),
    ]
    assert [job.metadata.partition(",")[0] for job in states if job][1] == "exit code 3"
    assert "out\n" in "".join(cluster.logs(jobs[1].id))


def test_a_job_that_slurm_refuses_leaves_nothing(cluster: BatchCluster, slurm: SlurmCluster) -> None:
    before = sorted(slurm.home.rglob("*"))
    with pytest.raises(LauncherError, match=r"Slurm did not take the job.*invalid partition specified: nowhere"):
        cluster.run_job(job_of("true", setup="#SBATCH --partition=nowhere\n"))
    assert sorted(path for path in slurm.home.rglob("*") if path.parent.name == "oumi_launcher") == [
        path for path in before if path.parent.name == "oumi_launcher"
    ]


def oumi(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "oumi", "launch", *arguments)


@pytest.mark.parametrize("name", [SSH, pytest.param("here", marks=pytest.mark.slow)])
def test_the_commands_show_and_end_jobs(name: str, slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: two\nresources: {cloud: slurm}\nnum_nodes: 2\nworking_dir: .\nrun: echo node $SLURM_NODEID\n"
    )
    up, place = ("up", "-c", "job.yaml", "--cluster", name), ("--cluster", name, "--cloud", "slurm")
    ended = oumi(*up)
    assert ended.returncode == 0, ended.stderr
    assert {"node 0", "node 1"} <= set(ended.stdout.splitlines())
    assert oumi(*up, "--num_nodes", "1", "--run", "exit 3").returncode == 3
    detached = oumi(*up, "-d", "--num_nodes", "1", "--run", "echo waiting; sleep 300")
    job_id = detached.stderr.rpartition("--job-id ")[2].split()[0]
    wait_until(lambda: "waiting\n" in oumi("logs", *place, "--job-id", job_id).stdout)
    rows = oumi("status", *place).stdout.splitlines()
    assert any(row.split()[1:5] == [name, job_id, "two", "running"] for row in rows), rows
    assert job_id in oumi("queue", *place).stdout.split()
    assert "cancelled" in oumi("cancel", *place, "--id", job_id).stdout
    assert job_id not in oumi("queue", *place).stdout.split()
    assert "waiting\n" in oumi("logs", *place, "-f").stdout  # of the last one


_RESUMES = """
trap 'echo stopping; sleep 1; exit 75' {signal}
echo "attempt ${{SLURM_RESTART_COUNT:-0}} ${{#A_SECRET}}"
if [ ! -e again ]; then touch again; while :; do sleep 0.1; done; fi
echo over
"""


@pytest.mark.parametrize("signal", ["USR1", pytest.param("TERM", marks=pytest.mark.slow)])
def test_a_job_that_is_preempted_goes_on_with_its_secrets(
    slurm: SlurmCluster, signal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "12345")
    cluster = cluster_of("here")
    (tmp_path / "resumes.sh").write_text(_RESUMES.format(signal=signal))
    status = cluster.run_job(job_of("bash resumes.sh", secrets=["A_SECRET"]))
    logs = cluster.logs(status.id)
    text = next(piece for piece in logs if "attempt 0 5\n" in piece)
    # Slurm sends SIGUSR1 to the batch script when the time ends; a preempted job is put back by Slurm itself.
    slurm.run(f"scancel --batch --signal=USR1 {status.id}" if signal == "USR1" else f"scontrol requeue {status.id}")
    text += "".join(logs)
    assert text.count("stopping") == 1
    assert "attempt 1 5\nover\n" in text
    assert end_of(cluster, status).state == JobState.SUCCEEDED


def test_a_program_that_does_not_answer_the_warning_is_not_ended_by_it(slurm: SlurmCluster) -> None:
    cluster = cluster_of("here")
    status = cluster.run_job(job_of("bash -c 'echo first; sleep 4; echo second'"))
    logs = cluster.logs(status.id)
    text = next(piece for piece in logs if "first" in piece)
    slurm.run(f"scancel --batch --signal=USR1 {status.id}")
    assert text + "".join(logs) == "first\nsecond\n"


@pytest.mark.parametrize("cluster", ["here", pytest.param(SSH, marks=pytest.mark.slow)], indirect=True)
def test_logs_are_whole(cluster: BatchCluster) -> None:
    status = cluster.run_job(job_of("seq 1000000; printf '\\xff\\r%%'; sleep 2; printf end"))
    text = "".join(cluster.logs(status.id))
    assert text == "".join(f"{number}\n" for number in range(1, 1_000_001)) + "\ufffd\r%end"


def test_a_machine_that_cannot_be_reached_is_told_with_the_reason(slurm: SlurmCluster) -> None:
    with pytest.raises(ClusterUnreachableError, match=r"nobody@127\.0\.0\.1: nobody@127\.0\.0\.1: Permission denied"):
        cluster_of("nobody@127.0.0.1").get_jobs()
    started_s = time.monotonic()
    with pytest.raises(ClusterUnreachableError, match=r"root@nowhere\.invalid: ssh: Could not resolve hostname"):
        cluster_of("root@nowhere.invalid").get_jobs()
    assert time.monotonic() - started_s < 60


def test_secrets_that_the_job_keeps_out_are_refused(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "1")
    job = job_of("true", setup="#SBATCH --export=NONE\n", secrets=["A_SECRET"])
    with pytest.raises(ConfigError, match="write `#SBATCH --export=NONE,A_SECRET`"):
        cluster_of("here").run_job(job)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["here", SSH])
def test_training_on_two_nodes_that_is_preempted_ends_like_one_that_was_not(
    slurm: SlurmCluster, name: str, tmp_path: Path
) -> None:
    cluster = cluster_of(name)
    work = tmp_path / "work"
    work.mkdir()
    config = tiny_config(work, max_steps=300, save_steps=100)
    config.to_yaml(work / "train.yaml")
    job = job_of(
        f"{sys.executable} -m oumi distributed torchrun --nproc-per-node=1 -m oumi train -c train.yaml"
        ' --training.output_dir "$OUT"\n',
        num_nodes=2,
        working_dir=str(work),
        envs={"PYTHONPATH": str(SOURCE), "OUT": str(tmp_path / "whole"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    whole = cluster.run_job(job)
    assert end_of(cluster, whole).state == JobState.SUCCEEDED, "".join(cluster.logs(whole.id))
    job.envs["OUT"] = str(tmp_path / "parts")
    parts = cluster.run_job(job)
    wait_until(lambda: (tmp_path / "parts" / "checkpoint-100").exists())
    slurm.run(f"scontrol requeue {parts.id}")
    text = "".join(cluster.logs(parts.id))
    assert end_of(cluster, parts).state == JobState.SUCCEEDED, text
    assert "checkpoint" in text
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)
