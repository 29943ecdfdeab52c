# SPDX-License-Identifier: Apache-2.0
"""Jobs of this machine: real processes, with a registry of the test's own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher import ClusterNotFoundError, JobState, JobStatus, LauncherError
from oumi.core.launcher.launcher import Launcher
from oumi.core.launcher.local import LocalCluster
from oumi.core.launcher.supervisor import JobDirectory, Process, process_table
from tests.fork_server import run_python, start_python

CLOUD = Launcher()


def job(run: str, **keys: object) -> JobConfig:
    return JobConfig.model_validate({"working_dir": ".", "resources": {"cloud": "local"}, "run": run, **keys})


def up(run: str, cluster: str = "local", slots: int | None = None, **keys: object) -> tuple[LocalCluster, str]:
    """Returns the cluster and the id of a new job."""
    options = {} if slots is None else {"slots": slots}
    cluster_of_job, status = CLOUD.up(job(run, **keys), cluster, **options)
    assert isinstance(cluster_of_job, LocalCluster)
    return cluster_of_job, status.id


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry and a working directory; nothing of what ran there is left at the end."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("OUMI_DIR", str(tmp_path / "oumi dir"))  # with a space, as some homes have it
    yield tmp_path / "oumi dir" / "launcher" / "local"
    wait_until(lambda: not marked(tmp_path))


def marked(folder: Path) -> list[Process]:
    """Returns the processes of all jobs below a folder."""

    def is_marked(process: Process) -> bool:
        try:
            return f"OUMI_LOCAL_JOB={folder}/".encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            return False

    return [process for process in process_table() if is_marked(process)]


def wait_until(is_reached: Callable[[], object], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not is_reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def wait_for(cluster: LocalCluster, job_id: str) -> JobStatus:
    """Returns the status of a job that has ended."""
    wait_until(lambda: status_of(cluster, job_id).done)
    return status_of(cluster, job_id)


def status_of(cluster: LocalCluster, job_id: str) -> JobStatus:
    status = cluster.get_job(job_id)
    assert status is not None
    return status


def supervisor_of(script_pid: int) -> int:
    return next(process.parent for process in process_table() if process.pid == script_pid)


def test_twenty_jobs_in_two_slots_survive_their_shell_a_cancel_and_a_kill(registry: Path) -> None:
    launch = """
import os, time
from oumi import launcher
from oumi.launcher import JobConfig, JobResources
os.setsid()
for i in range(1, 21):
    body = {5: "touch at5; sleep 600", 7: "sleep 600 & echo $$ > pid7.part; mv pid7.part pid7; sleep 600 | sleep 600"}
    run = f"echo start {i}; printf '%0100000d' {i}; {body.get(i, '')}\\necho; echo end {i}"
    job = JobConfig(name=f"job {i}", working_dir=".", resources=JobResources(cloud="local"), run=run)
    launcher.up(job, "sweep", slots=2)
open("launched", "w").close()
time.sleep(60)
"""
    shell = start_python("-c", launch)
    wait_until(Path("launched").exists)
    os.killpg(shell.pid, signal.SIGHUP)
    os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    cluster = LocalCluster(registry / "sweep")
    wait_until(Path("at5").exists)
    assert cluster.cancel_job("5").state is JobState.CANCELLED
    wait_until(Path("pid7").exists)
    os.kill(int(Path("pid7").read_text()), signal.SIGKILL)
    wait_until(lambda: all(status.done for status in cluster.get_jobs()))

    jobs = {int(status.id): status for status in cluster.get_jobs()}
    assert [status.name for status in jobs.values()] == [f"job {i}" for i in range(1, 21)]
    states = {i: status.state for i, status in jobs.items() if status.state is not JobState.SUCCEEDED}
    assert states == {5: JobState.CANCELLED, 7: JobState.FAILED}
    assert (jobs[7].metadata, jobs[7].exit_code) == ("killed by SIGKILL", 137)
    wait_until(lambda: not marked(registry))
    for i in range(1, 21):
        output = "".join(cluster.logs(str(i)))
        # Bash may add which of its commands was ended.
        whole = output[:100_009] if i in states else f"{output}".removesuffix(f"\nend {i}\n")
        assert whole.rstrip("\n") == f"start {i}\n{i:0100000}"
    # First come, first served, and never three at once: a job starts when fewer than two before it have not ended.
    spans = [(status.start_at, status.end_at) for status in jobs.values()]
    for i, (start, _) in enumerate(spans):
        assert sum(end > start for _, end in spans[:i]) < 2  # type: ignore[operator]


@pytest.mark.parametrize(
    ("run", "state", "word", "metadata", "exit_code"),
    [
        ("true", "succeeded", "COMPLETED", "", 0),
        ("(exit 3)", "failed", "FAILED", "exit code 3", 3),
        ("no-such-command", "failed", "FAILED", "exit code 127: a command was not found", 127),
        ("kill -9 $$", "failed", "FAILED", "killed by SIGKILL", 137),
        ("bash -c 'kill -SEGV $$'", "failed", "FAILED", "exit code 139: a command was ended by SIGSEGV", 139),
        (
            "exit 75",
            "failed",
            "PREEMPTED",
            "exit code 75: stopped; with `training.try_resume_from_last_checkpoint` the same job resumes",
            75,
        ),
    ],
)
def test_a_status_says_how_a_job_ended(run: str, state: str, word: str, metadata: str, exit_code: int) -> None:
    status = wait_for(*up(run))
    assert (status.state, status.status, status.metadata, status.exit_code) == (state, word, metadata, exit_code)
    assert status.submit_time <= status.start_at <= status.end_at  # type: ignore[operator]


def test_cancel_ends_all_processes_of_a_job_after_they_have_saved(tmp_path: Path) -> None:
    # As torchrun does, one process is in a session of its own, and gets the signal from its parent.
    Path("worker.sh").write_text(
        "trap 'sleep 0.3; echo saved; exit 75' TERM; touch ready; while :; do sleep 0.05; done"
    )
    cluster, job_id = up(
        "bash -c \"trap 'kill \\$!; wait \\$!; exit 75' TERM; setsid bash worker.sh & wait\"; touch never"
    )
    wait_until(Path("ready").exists)
    status = cluster.cancel_job(job_id)
    assert (status.state, status.status, status.done) == (JobState.CANCELLED, "CANCELED", True)
    assert status.metadata == "saved a checkpoint; with `training.try_resume_from_last_checkpoint` the same job resumes"
    wait_until(lambda: not marked(tmp_path))
    assert "".join(cluster.logs(job_id)) == "saved\n"
    assert cluster.cancel_job(job_id) == status
    assert cluster.get_jobs() == [status]


def test_a_second_cancel_kills_what_ignores_the_first(tmp_path: Path) -> None:
    cluster, job_id = up("trap '' TERM; touch ready; while :; do sleep 0.05; done")
    wait_until(Path("ready").exists)
    cancel = "import sys; from oumi import launcher; print(launcher.cancel('1', 'local', 'local').state)"
    first = start_python("-c", cancel)
    wait_until(lambda: status_of(cluster, job_id).status == "CANCELING")
    assert status_of(cluster, job_id).state is JobState.RUNNING
    assert cluster.cancel_job(job_id).state is JobState.CANCELLED
    assert first.communicate()[0] == "cancelled\n"
    wait_until(lambda: not marked(tmp_path))


def test_a_job_that_waits_can_be_cancelled_and_never_starts() -> None:
    cluster, _ = up("touch ready; sleep 600")
    _, second = up("touch never")
    assert status_of(cluster, second).metadata == "waits for one of 1 slots"
    assert cluster.cancel_job(second).metadata == "before it started"
    wait_until(Path("ready").exists)
    cluster.stop()
    assert [status.state for status in cluster.get_jobs()] == ["cancelled", "cancelled"]
    assert not Path("never").exists()


def test_more_slots_start_jobs_that_wait() -> None:
    cluster, first = up("until [ -e go ]; do sleep 0.05; done")
    _, second = up("until [ -e go ]; do sleep 0.05; done")
    assert status_of(cluster, second).state is JobState.PENDING
    _, third = up("touch go", slots=3)
    assert [wait_for(cluster, job_id).state for job_id in (first, second, third)] == ["succeeded"] * 3


def test_what_a_script_leaves_in_the_background_ends_with_it_but_not_the_jobs_it_launched(tmp_path: Path) -> None:
    inner = "from oumi import launcher; launcher.up(launcher.JobConfig.from_yaml('inner.yaml'), 'other')"
    Path("inner.yaml").write_text(
        "working_dir: .\nresources: {cloud: local}\nrun: until [ -e go ]; do sleep 0.05; done; echo inner\n"
    )
    Path("launch.py").write_text(inner)
    cluster, job_id = up(f"setsid sleep 600 & sleep 600 & {os.sys.executable} launch.py")  # type: ignore[attr-defined]
    assert wait_for(cluster, job_id).state is JobState.SUCCEEDED
    wait_until(lambda: [process for process in marked(tmp_path) if "sleep 600" in command_of(process.pid)] == [])
    Path("go").touch()
    other = LocalCluster(cluster.path.parent / "other")
    assert wait_for(other, "1").state is JobState.SUCCEEDED
    assert "".join(other.logs("1")) == "inner\n"


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_job_whose_supervisor_was_killed_goes_on_and_is_told_until_it_is_cancelled() -> None:
    cluster, job_id = up("sleep 600 & echo $$ > pid.part; mv pid.part pid; wait")
    wait_until(Path("pid").exists)
    _, later = up("true")
    script = int(Path("pid").read_text())
    os.kill(supervisor_of(script), signal.SIGKILL)
    wait_until(lambda: "its supervisor was killed; processes" in status_of(cluster, job_id).metadata)
    assert (status_of(cluster, job_id).state, str(script) in status_of(cluster, job_id).metadata) == ("running", True)
    assert status_of(cluster, later).state is JobState.PENDING, "its slot is still in use"
    status = cluster.cancel_job(job_id)
    assert (status.state, status.metadata) == (JobState.CANCELLED, "its supervisor was killed")
    assert wait_for(cluster, later).state is JobState.SUCCEEDED


def test_a_job_whose_supervisor_was_killed_has_failed_once_it_ends() -> None:
    cluster, job_id = up("echo $$ > pid.part; mv pid.part pid; until [ -e go ]; do sleep 0.05; done; echo whole")
    wait_until(Path("pid").exists)
    os.kill(supervisor_of(int(Path("pid").read_text())), signal.SIGKILL)
    Path("go").touch()
    status = wait_for(cluster, job_id)
    assert (status.state, status.metadata) == (JobState.FAILED, "its supervisor was killed")
    assert "".join(cluster.logs(job_id)) == "whole\n"


def test_a_shutdown_lets_a_job_save_and_a_restart_is_noticed(registry: Path) -> None:
    Path("train.sh").write_text(
        "trap 'echo saved; exit 75' TERM; echo $$ > pid.part; mv pid.part pid; sleep 600 & wait"
    )
    cluster, job_id = up("exec bash train.sh")
    wait_until(Path("pid").exists)
    os.kill(supervisor_of(int(Path("pid").read_text())), signal.SIGTERM)
    status = wait_for(cluster, job_id)
    assert (status.status, "saved" in "".join(cluster.logs(job_id))) == ("PREEMPTED", True)
    assert "ended by SIGTERM" in status.metadata

    # As the files are after a loss of power.
    directory = JobDirectory(registry / "local" / job_id)
    wait_until(lambda: not directory.is_supervised())
    directory.write(state="running", started=time.time())
    request = {**directory.request(), "boot": "another"}
    (directory.path / "job.json").write_text(json.dumps(request))
    status = status_of(cluster, job_id)
    assert (status.state, status.metadata, status.done) == (JobState.FAILED, "the machine was restarted", True)
    (directory.path / "state.json").write_text("")
    assert status_of(cluster, job_id).metadata == "the machine was restarted"
    (directory.path / "job.json").write_text(json.dumps({**request, "host": "other-machine"}))
    status = status_of(cluster, job_id)
    assert (status.state, status.metadata) == ("unknown", "was started on other-machine, which knows its state")
    for call in (lambda: cluster.cancel_job(job_id), cluster.down):
        with pytest.raises(LauncherError, match="job 1 was started on other-machine"):
            call()
    (directory.path / "job.json").write_text("")
    assert "are damaged" in status_of(cluster, job_id).metadata


def test_launchers_at_the_same_time_give_each_job_an_id_of_its_own() -> None:
    launch = """
import os, sys
from oumi import launcher
job = launcher.JobConfig(working_dir=".", resources=launcher.JobResources(cloud="local"), run="echo $WHO")
for i in range(4):
    job.envs = {"WHO": f"{sys.argv[1]} {i}"}
    launcher.up(job, "shared", slots=3)
"""
    processes = [start_python("-c", launch, str(number)) for number in range(3)]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    cluster, last = up("true", "shared")
    assert last == "13"
    wait_for(cluster, last)
    wait_until(lambda: all(status.done for status in cluster.get_jobs()))
    outputs = sorted("".join(cluster.logs(str(i))) for i in range(1, 13))
    assert outputs == sorted(f"{number} {i}\n" for number in range(3) for i in range(4))


def test_output_streams_as_it_comes_and_any_bytes_pass() -> None:
    cluster, job_id = up(
        r"printf '10%%\r20%%'; until [ -e go ]; do sleep 0.05; done; printf '\xe2\x82'; sleep 0.3; printf '\xac\xff'"
    )
    pieces = cluster.logs(job_id)
    text = ""
    while text != "10%\r20%":
        text += next(pieces)
    assert "".join(cluster.logs(job_id, follow=False)) == text
    Path("go").touch()
    assert "".join(pieces) == "€\ufffd"


def test_output_of_100_mb_is_whole() -> None:
    cluster, job_id = up("head -c 100000000 /dev/zero")
    assert sum(map(len, cluster.logs(job_id))) == 100_000_000


def test_a_secret_arrives_in_the_process_and_in_no_file_or_command_line(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cret-$(touch hit)"
    Path("expected").write_text(secret)
    monkeypatch.setenv("MY_TOKEN", secret)
    cluster, job_id = up(
        'touch ready; until [ -e go ]; do sleep 0.05; done; [ "$MY_TOKEN" = "$(cat expected)" ]',
        secrets=["MY_TOKEN"],
    )
    wait_until(Path("ready").exists)
    commands = [command_of(process.pid) for process in marked(registry)]
    Path("go").touch()
    assert wait_for(cluster, job_id).state is JobState.SUCCEEDED
    assert len(commands) >= 2
    assert not [command for command in commands if secret in command]
    files = [path for path in registry.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert (registry.stat().st_mode & 0o777, (registry / "local" / job_id).stat().st_mode & 0o777) == (0o700, 0o700)


def test_hostile_names_and_values_pass_through_a_job() -> None:
    folder = Path('it\'s "$(touch hit)"')
    folder.mkdir()
    value = "`touch hit`\n'\"" * 7000
    cluster, job_id = up(
        'printf %s "$VALUE" > value; pwd', name="a\n; touch hit\x1b[2J", working_dir=str(folder), envs={"VALUE": value}
    )
    status = wait_for(cluster, job_id)
    assert (status.state, status.name) == (JobState.SUCCEEDED, "a\n; touch hit\x1b[2J")
    assert (folder / "value").read_text() == value
    assert "".join(cluster.logs(job_id)) == f"{folder.absolute()}\n"
    assert not list(Path().rglob("hit"))


def test_keys_that_this_machine_cannot_carry_out_are_refused_or_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    refused = job(
        "true",
        num_nodes=2,
        working_dir="nowhere",
        file_mounts={str(tmp_path / "token"): str(tmp_path / "token"), "/elsewhere": str(tmp_path / "token"), "a": "b"},
        storage_mounts={"/bucket": {"source": "gs://bucket", "store": "gcs"}},
        envs={"OUMI_LOCAL_JOB": "/elsewhere"},
    )
    with pytest.raises(ConfigError) as error:
        CLOUD.plan(refused)
    assert [problem.key for problem in error.value.problems] == [
        "envs.OUMI_LOCAL_JOB", "num_nodes", "file_mounts./elsewhere", "file_mounts.a", "storage_mounts./bucket",
        "working_dir",
    ]  # fmt: skip
    resources = {"cloud": "local", "accelerators": "A100:4", "cpus": "8+", "use_spot": True, "region": "x"}
    plan = CLOUD.plan(job("true", resources=resources, secrets=["NOT_SET"]), "queue", slots=3)
    assert [warning.partition(" ")[0] for warning in plan.warnings] == [
        "resources.accelerators:", "resources.cpus:", "resources.region:", "resources.use_spot:",
    ]  # fmt: skip
    assert plan.missing == ("secrets.NOT_SET: not set in your environment: `export NOT_SET=...`",)
    assert "which runs 3 at once" in plan.steps[0]
    assert CLOUD.status("local") == {}, "a plan creates nothing"


def test_a_job_that_is_made_in_python_is_checked_as_a_file_is() -> None:
    with pytest.raises(ConfigError, match="run: required, but empty"):
        CLOUD.up(job(" "))
    with pytest.raises(ConfigError, match=r"secrets.A: is a variable of envs, too"):
        CLOUD.plan(job("true", secrets=["A"], envs={"A": "1"}))
    assert CLOUD.status("local") == {}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", " ", "a\nb", "x" * 101, "$(touch hit)"])
def test_a_cluster_has_a_name_that_is_a_directory_here(name: str) -> None:
    with pytest.raises(ConfigError, match="--cluster: got"):
        CLOUD.plan(job("true"), name or " ")


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown argument 'slot', did you mean 'slots'"):
        CLOUD.up(job("true"), "local", slot=2)
    with pytest.raises(ConfigError, match="slots: expected a number > 0, got 0"):
        CLOUD.up(job("true"), "local", slots=0)
    with pytest.raises(ConfigError, match="slots: expected a number > 0, got True"):
        CLOUD.up(job("true"), "local", slots=True)


def test_down_ends_the_jobs_and_forgets_the_queue(registry: Path) -> None:
    up("touch ready; sleep 600", "gone")
    wait_until(Path("ready").exists)
    up("true", "kept")
    with pytest.raises(ClusterNotFoundError, match="local has no cluster 'gon', did you mean 'gone'"):
        CLOUD.down("local", "gon")
    CLOUD.down("local", "gone")
    assert [cluster.name() for _, cluster in CLOUD.clusters("local")] == ["kept"]
    with pytest.raises(ValueError, match="no cluster 'gone'"):
        CLOUD.cancel("1", "local", "gone")
    with pytest.raises(LauncherError, match="cluster kept has no job '3'"):
        CLOUD.cancel("3", "local", "kept")
    with pytest.raises(ClusterNotFoundError):
        CLOUD.run(job("true"), "gone")
    with pytest.raises(ClusterNotFoundError, match="cluster gone is down; `oumi launch up` creates it again"):
        LocalCluster(registry / "gone").run_job(job("true"))


def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUMI_DIR", str(tmp_path / "file"))
    for call in (lambda: CLOUD.up(job("true")), lambda: CLOUD.status("local")):
        with pytest.raises(LauncherError, match="file/launcher/local: Not a directory"):
            call()
    assert CLOUD.plan(job("true")).steps


def test_output_goes_to_the_directory_of_logs_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUMI_LOGGING_DIR", str(tmp_path / "logs"))
    cluster, job_id = up("echo out; echo err >&2")
    assert "".join(cluster.logs(job_id)) == "out\nerr\n"
    cluster.down()
    (log,) = (tmp_path / "logs").glob("*_local_1.log")
    assert log.read_text() == "out\nerr\n"
    cluster, job_id = up("true")
    wait_for(cluster, job_id)
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    with pytest.raises(LauncherError, match=r"the output of job 1 is no longer in .*/logs/.*_local_1.log"):
        list(cluster.logs(job_id))


COMMAND_JOB = """
name: hello
working_dir: .
resources: {cloud: local}
run: |
  echo "hello $WHO"
  exit 4
"""


def test_the_commands_follow_a_job_to_its_exit_code_and_list_it() -> None:
    Path("job.yaml").write_text(COMMAND_JOB)
    result = run_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "--cluster", "queue", "--envs.WHO", "you")
    assert (result.returncode, result.stdout) == (4, "hello you\n")
    assert result.stderr.splitlines() == [
        "job 1 on queue: pending, waits for one of 1 slots", "job 1 on queue: failed, exit code 4",
    ]  # fmt: skip
    result = run_python("-m", "oumi", "launch", "status", "--cloud", "local")
    assert result.stdout == ("cloud  cluster  id  name   state\nlocal  queue    1   hello  failed  exit code 4\n")
    place = ["--cloud", "local", "--cluster", "queue"]
    result = run_python("-m", "oumi", "launch", "logs", *place, "--output-filepath", "o/l")
    assert (result.returncode, Path("o/l").read_text()) == (0, "hello you\n")
    result = run_python("-m", "oumi", "launch", "queue", "--cloud", "local", "--cluster", "quue")
    assert (result.returncode, result.stderr) == (69, "Error: local has no cluster 'quue', did you mean 'queue'?\n")


def test_a_file_for_output_that_stays_empty_is_refused() -> None:
    Path("job.yaml").write_text(COMMAND_JOB)
    result = run_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "-d", "--output-filepath", "log")
    assert (result.returncode, "leave out one of them" in result.stderr) == (2, True)
    assert CLOUD.status("local") == {}
    assert not Path("log").exists()


def test_a_job_that_is_forgotten_while_it_is_followed_ends_as_unknown(registry: Path) -> None:
    Path("job.yaml").write_text("working_dir: .\nresources: {cloud: local}\nrun: touch ready; sleep 600\n")
    follower = start_python("-m", "oumi", "launch", "up", "-c", "job.yaml")
    wait_until(Path("ready").exists)
    follower.send_signal(signal.SIGSTOP)  # so that it does not see the end of the job
    CLOUD.down("local", "local")
    follower.send_signal(signal.SIGCONT)
    _, stderr = follower.communicate()
    last = "job 1 on local: unknown, the cluster does not know it any more"
    assert (follower.returncode, stderr.splitlines()[-1]) == (1, last)


def test_a_job_whose_output_cannot_be_written_here_goes_on_and_is_told() -> None:
    Path("job.yaml").write_text(COMMAND_JOB)
    result = run_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "--output-filepath", "/dev/full")
    assert (result.returncode, "No space left on device" in result.stderr) == (74, True)
    follow = "oumi launch logs --cloud local --cluster local --job-id 1 -f"
    assert f"job 1 is no longer followed; go on with: {follow}\n" in result.stderr
    assert run_python("-m", *follow.split()).stdout == "hello \n"


def test_a_launch_that_fails_leaves_a_file_for_output_as_it_was() -> None:
    Path("job.yaml").write_text(COMMAND_JOB)
    Path("log").write_text("of yesterday\n")
    arguments = ["-c", "job.yaml", "--num_nodes", "2", "--output-filepath", "log"]
    assert run_python("-m", "oumi", "launch", "up", *arguments).returncode == 2
    assert Path("log").read_text() == "of yesterday\n"


def test_ctrl_c_leaves_a_job_running_and_says_so() -> None:
    Path("job.yaml").write_text("working_dir: .\nresources: {cloud: local}\nrun: echo ready; sleep 600\n")
    follower = start_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "--output-filepath", "log")
    # Before that it may not follow yet.
    wait_until(lambda: Path("log").exists() and Path("log").read_text() == "ready\n")
    follower.send_signal(signal.SIGINT)
    _, stderr = follower.communicate()
    cancel = "oumi launch cancel --cloud local --cluster local --job-id 1"
    assert (follower.returncode, stderr.splitlines()[-1]) == (130, f"job 1 goes on; end it with: {cancel}")
    cluster = LocalCluster(Path(os.environ["OUMI_DIR"]) / "launcher" / "local" / "local")
    assert status_of(cluster, "1").state is JobState.RUNNING
    result = run_python("-m", *cancel.split())
    assert (result.returncode, "cancelled" in result.stdout) == (0, True)
