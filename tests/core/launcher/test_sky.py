# SPDX-License-Identifier: Apache-2.0
"""SkyPilot behind the protocol of a cloud, with machines that are directories (`fake_sky`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError, StorageError
from oumi.core.launcher import ClusterNotFoundError, JobState, LauncherError, MissingToolError
from oumi.core.launcher.launcher import Launcher
from oumi.core.launcher.sky import cloud as sky_cloud
from oumi.core.launcher.sky.process import find_python
from oumi.core.launcher.sky.staging import find_uploads, staged
from oumi.core.recipes import list_recipes
from tests.core.launcher.sky_tools import install_fake_sky
from tests.fork_server import run_python, start_python

RECIPE = "configs/recipes/llama3_2/sft/3b_full/gcp_job.yaml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """SkyPilot with an account, and nothing else of this machine's."""
    monkeypatch.setenv("OUMI_SKY", str(install_fake_sky(tmp_path / "sky")))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "state.db").touch()
    (tmp_path / "sky" / "home" / "account").touch()
    yield tmp_path / "sky" / "home"
    sky_cloud.SKY.close()


def make_job(run: str = "echo hello", extra: str = "", cloud: str = "gcp", resources: str = "") -> JobConfig:
    return JobConfig.from_str(f"name: job\nresources: {{cloud: {cloud}, {resources}}}\nrun: {json.dumps(run)}\n{extra}")


def test_a_job_runs_and_its_output_is_read(home: Path) -> None:
    launcher = Launcher()
    cluster, status = launcher.up(make_job("echo hello; echo 'two words'"), "one")
    assert (status.id, status.state, status.cluster, status.name) == ("1", JobState.SUCCEEDED, "one", "job")
    assert "".join(cluster.logs("1")) == "hello\ntwo words\n"
    assert launcher.run(make_job("exit 3"), "one").state == JobState.FAILED
    assert [job.id for job in launcher.status("gcp")["gcp"]] == ["1", "2"]


def test_a_state_that_is_not_known_is_told_and_not_guessed(home: Path) -> None:
    status = Launcher().up(make_job(extra="envs: {STATE: HIBERNATING}"), "one")[1]
    assert (status.state, status.status, status.done) == (JobState.UNKNOWN, "HIBERNATING", False)


def test_a_stopped_cluster_is_seen_started_and_given_back(home: Path) -> None:
    launcher = Launcher()
    launcher.up(make_job(), "one")
    launcher.stop("gcp", "one")
    ((name, cluster, jobs),) = launcher.jobs("gcp")
    assert (name, cluster.name(), cluster.state(), jobs) == ("gcp", "one", "STOPPED", [])
    with pytest.raises(LauncherError, match=r"cluster one \(STOPPED\) has no job"):
        launcher.logs("gcp", "one")
    assert launcher.run(make_job(), "one").id == "2"
    launcher.stop("gcp", "one")
    launcher.down("gcp", "one")
    assert launcher.clusters("gcp") == []
    with pytest.raises(ClusterNotFoundError, match="gcp has no cluster 'one'"):
        launcher.down("gcp", "one")


def test_idle_machines_are_stopped_after_an_hour_unless_the_launch_says_otherwise(home: Path) -> None:
    launcher = Launcher()

    def autostop(**kwargs: object) -> object:
        launcher.up(make_job(), "one", **kwargs)
        return json.loads((home / "one" / "record.json").read_text())["autostop"]

    assert autostop() == 60
    assert autostop(idle_minutes_to_autostop=5) == 5  # of a cluster that is up already
    assert autostop() == 5
    with pytest.raises(
        ConfigError, match=r"unknown argument 'idle_minutes', did you mean 'idle_minutes_to_autostop'\?"
    ):
        autostop(idle_minutes=5)
    with pytest.raises(ConfigError, match="expected minutes, or -1 for never, got -5"):
        autostop(idle_minutes_to_autostop=-5)
    with pytest.raises(ConfigError, match="lambda cannot stop machines"):
        launcher.up(make_job(cloud="lambda"), "two", idle_minutes_to_autostop=5)
    launcher.up(make_job(cloud="lambda"), "two")
    assert json.loads((home / "two" / "record.json").read_text())["autostop"] is None


def test_a_cancelled_job_is_cancelled(home: Path) -> None:
    launcher = Launcher()
    launcher.up(make_job(extra="envs: {STATE: RUNNING}"), "one")
    assert launcher.cancel("1", "gcp", "one").state == JobState.CANCELLED
    with pytest.raises(LauncherError, match="cluster one has no job '7'"):
        launcher.cancel("7", "gcp", "one")


def test_secrets_reach_the_job_and_no_file_or_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN_OF_JOB", "s3cr3t-$(touch pwned)")
    job = make_job('printf %s "$TOKEN_OF_JOB" | wc -c; cat /proc/$PPID/cmdline', "secrets: [TOKEN_OF_JOB]")
    assert "s3cr3t" not in Launcher().plan(job, "one").script
    cluster, status = Launcher().up(job, "one")
    output = "".join(cluster.logs(status.id))
    assert output.startswith("21\n")
    assert "driver.py" in output
    assert "s3cr3t" not in output
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert written == []
    monkeypatch.delenv("TOKEN_OF_JOB")
    with pytest.raises(ConfigError, match=r"secrets.TOKEN_OF_JOB: not set in your environment"):
        Launcher().up(job, "one")
    assert Launcher().plan(job, "one").missing[0].startswith("secrets.TOKEN_OF_JOB: not set")


def test_exactly_the_files_that_the_plan_counts_are_uploaded(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's $(touch pwned)"
    (folder / "sub").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", folder], check=True)
    names = ["a.py", "sub/b c.py", "kept.log", "big.bin", "secret.env", "sub/.skyignore", ".gitignore", ".oumiignore"]
    for name in names:
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*.log\n*.env\n")
    (folder / ".oumiignore").write_text("*.bin\n")
    (folder / "sub" / ".skyignore").write_text("*.py\n")
    subprocess.run(["git", "-C", folder, "add", "-f", "kept.log"], check=True)
    os.symlink("a.py", folder / "link")
    (tmp_path / "odd 'name").write_text("data")
    job = make_job("find . -type f -o -type l | sort")
    job.working_dir, job.file_mounts = str(folder), {"/data/x": str(tmp_path / "odd 'name")}
    plan = Launcher().plan(job, "one")
    assert "7 files" in plan.steps[0]
    assert any(".skyignore is neither read nor uploaded" in warning for warning in plan.warnings)
    cluster, status = Launcher().up(job, "one")
    files = set("".join(cluster.logs(status.id)).split("\n")) - {""}
    # SkyPilot leaves out what `.skyignore` names: here, itself.
    expected = {"./a.py", "./sub/b c.py", "./kept.log", "./.gitignore", "./.oumiignore", "./link"}
    assert files == expected | {"./.skyignore"}
    assert (home / "one" / "1" / "workdir" / ".skyignore").read_text() == "/.skyignore\n"
    assert (home / "one" / "1" / "data_x").read_text() == "data"
    assert list((tmp_path / "cache" / "launch").iterdir()) == []


def test_what_cannot_be_copied_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").touch()
    job.working_dir = str(tmp_path / "work")
    uploads = {"working_dir": find_uploads(job)["working_dir"]}
    (tmp_path / "work" / "a").unlink()  # between the count and the copy
    with (
        pytest.raises(StorageError, match=r"a: cannot be copied to .*: No such file"),
        staged({"run": "echo"}, uploads),
    ):
        pass
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="set OUMI_CACHE_DIR"):
        Launcher().up(job, "one")
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "$(touch pwned)"))
    with pytest.raises(ConfigError, match=r"SkyPilot cannot upload from a path with '\$'; set OUMI_CACHE_DIR"):
        Launcher().up(job, "one")


def test_a_plan_names_the_price_and_the_machine_where_they_are_known(home: Path) -> None:
    job = make_job(resources="accelerators: 'A100:4'", extra="num_nodes: 2")
    plan = Launcher().plan(job, "one")
    assert plan.cost_per_hour is None
    assert any("price is not known" in step for step in plan.steps)
    (home / "prices.json").write_text('{"A100:4": 11.5}')
    plan = Launcher().plan(job, "one")
    assert plan.cost_per_hour == 23.0
    assert any("2 machines of gcp (big-machine)" in step for step in plan.steps)


def test_wrong_values_are_all_named_with_their_lines(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("resources:\n  cloud: lambda\n  cpus: eight\n  use_spot: true\nrun: echo\n")
    with pytest.raises(ConfigError, match=r'job.yaml:3:3 resources.cpus: The "cpus" field should be a number'):
        Launcher().plan(JobConfig.from_yaml(file), "one")
    file.write_text("resources:\n  cloud: lambda\n  use_spot: true\nrun: echo\n")
    with pytest.raises(ConfigError) as refused:
        Launcher().plan(JobConfig.from_yaml(file), "a b")
    assert [problem.key for problem in refused.value.problems] == ["--cluster", "resources.use_spot"]


def test_without_an_account_nothing_is_started_and_the_way_to_one_is_told(home: Path) -> None:
    (home / "account").unlink()
    assert any("gcloud init" in missing for missing in Launcher().plan(make_job(), "one").missing)
    with pytest.raises(
        MissingToolError, match=r"SkyPilot cannot use gcp from here:\ngcp \(compute\):\n  Run: gcloud init"
    ):
        Launcher().up(make_job(), "one")
    assert [path.name for path in home.iterdir()] == ["pid"]


def test_a_launch_that_fails_says_that_machines_may_go_on(home: Path) -> None:
    with pytest.raises(LauncherError, match="SkyPilot: RuntimeError: no room\nmachines may have been started"):
        Launcher().up(make_job(extra="envs: {FAIL: no room}"), "one")
    assert [cluster.name() for _, cluster in Launcher().clusters("gcp")] == ["one"]


def test_the_accounts_of_a_server_elsewhere_are_not_looked_for_here(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "account").unlink()
    monkeypatch.setenv("FAKE_SKY_SERVER", "https://sky.example")
    plan = Launcher().plan(make_job(), "one")
    assert plan.missing == ()
    assert "https://sky.example" in plan.steps[0]


def test_without_skypilot_a_plan_shows_the_task_and_how_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OUMI_SKY")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python() is None
    plan = Launcher().plan(make_job(cloud="k8s"), "one")
    assert "skypilot[kubernetes]" in plan.missing[0]
    assert "infra: kubernetes" in plan.script
    with pytest.raises(MissingToolError, match="uv tool install"):
        Launcher().up(make_job(), "one")
    monkeypatch.setenv("OUMI_SKY", "/no/sky")
    with pytest.raises(ConfigError, match="OUMI_SKY: no file /no/sky"):
        Launcher().plan(make_job(), "one")


SHELL_LINE = """#!/bin/sh
'''exec' {quote}{{python}}{quote} "$0" "$@"
' '''
"""


@pytest.mark.parametrize(
    "head",
    [
        "#!{python}\n",
        "#! {python} \n",
        "#!/usr/bin/env python-of-sky\n",
        SHELL_LINE.format(quote='"'),
        SHELL_LINE.format(quote=""),
    ],
)
def test_the_python_of_skypilot_is_found_in_what_installers_write(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, command = tmp_path / "python-of-sky", tmp_path / "sky"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    command.write_text(head.format(python=python) + "import sky\n")
    command.chmod(0o755)
    monkeypatch.delenv("OUMI_SKY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python() == str(python)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/no/python\n", b"import sky\n"])
def test_a_command_that_is_not_skypilot_is_refused_by_name(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sky").write_bytes(content)
    monkeypatch.setenv("OUMI_SKY", str(tmp_path / "sky"))
    with pytest.raises(ConfigError, match="is not the command `sky` of SkyPilot"):
        find_python()


def test_a_skypilot_that_cannot_start_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "broken"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    (tmp_path / "sky-command").write_text(f"#!{python}\n")
    monkeypatch.setenv("OUMI_SKY", str(tmp_path / "sky-command"))
    for _ in range(2):  # the process that ended is not asked again
        with pytest.raises(LauncherError, match=f"SkyPilot ended with exit code 3; see what `{python} -c"):
            Launcher().plan(make_job(), "one")


def test_clouds_that_are_asked_at_once_ask_skypilot_once(home: Path) -> None:
    Launcher().up(make_job(), "one")
    (home / "calls").unlink()
    launchers = [threading.Thread(target=Launcher().clusters, args=(cloud,)) for cloud in ("gcp", "aws", "lambda")]
    for thread in launchers:
        thread.start()
    for thread in launchers:
        thread.join()
    assert 1 <= (home / "calls").read_text().count("status") <= 3
    assert [cluster.name() for _, cluster in Launcher().clusters("gcp")] == ["one"]
    assert Launcher().clusters("aws") == []


def test_clouds_that_cannot_be_asked_for_one_reason_are_told_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OUMI_SKY")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_python("-m", "oumi", "launch", "status")
    assert result.returncode == 0
    (line,) = [line for line in result.stderr.splitlines() if "SkyPilot" in line]
    assert line.startswith("INFO aws, azure, gcp, k8s, lambda, nebius, runpod, sky-slurm: SkyPilot is not installed")
    with pytest.raises(MissingToolError, match="uv tool install"):
        Launcher().clusters("gcp")


def test_nothing_is_asked_where_there_can_be_no_clusters(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".sky" / "state.db").unlink()
    assert Launcher().clusters("gcp") == []
    assert not (home / "calls").exists()


def test_an_output_that_is_no_longer_read_ends_its_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SKY_ENDLESS", "1")
    cluster, status = Launcher().up(make_job("echo one"), "one")
    output = cluster.logs(status.id)
    assert next(output) == "one\n"
    output.close()  # type: ignore[attr-defined]  # a generator
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert sum(b"driver.py" in command for command in commands) <= 1  # the one for all calls


@pytest.mark.parametrize("name", [recipe.name for recipe in list_recipes() if recipe.path.stem.endswith("gcp_job")])
def test_a_job_that_ships_launches_in_dry_run(name: str, home: Path) -> None:
    result = run_python("-m", "oumi", "launch", "up", "-c", name, "--cluster", "one", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "# accepted by SkyPilot 0.14.1" in result.stdout
    assert "oumi distributed torchrun -m oumi train -c configs/recipes/" in result.stdout


def test_the_command_without_an_account_says_what_is_missing_and_without_skypilot_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", "oumi", "launch", "up", "-c", RECIPE, "--cluster", "llama3b-sft")
    (home / "account").unlink()
    result = run_python(*command)
    assert result.returncode == 69
    assert "SkyPilot cannot use gcp from here" in result.stderr
    assert "gcloud init" in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.delenv("OUMI_SKY")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    result = run_python(*command)
    assert result.returncode == 69
    assert "uv tool install --with pip 'skypilot[gcp]>=0.14,<0.15'" in result.stderr
    assert run_python(*command, "--dry-run").returncode == 0


def test_an_output_file_that_cannot_be_written_is_told_before_anything_starts(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "job.yaml").write_text("resources: {cloud: gcp}\nrun: echo\n")
    command = ("-m", "oumi", "launch", "up", "-c", "job.yaml", "--cluster", "one", "--output-filepath", "file/log")
    result = run_python(*command, folder=tmp_path)
    assert (result.returncode, result.stderr) == (73, "Error: file/log: File exists\n")
    assert not (home / "one").exists()


def test_what_is_uploaded_and_started_is_seen_before(home: Path, tmp_path: Path) -> None:
    (home / "prices.json").write_text('{"A100:4": 11.5}')
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "rows").write_bytes(b"x" * 2_000_000)
    (tmp_path / "job.yaml").write_text(
        "resources: {cloud: gcp, accelerators: 'A100:4'}\nworking_dir: work\nrun: echo hi\n"
    )
    result = run_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "--cluster", "one", folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, "hi\n")
    told = result.stderr.splitlines()
    started = told.index("starting machines")
    assert f"INFO upload working_dir from {tmp_path / 'work'}: 1 files, 2.0 MB" in told[:started]
    assert "INFO start 1 machine of gcp (big-machine), unless one is up" in told[:started]
    assert "INFO price: $11.50 an hour" in told[:started]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_launch_that_is_interrupted_is_taken_back_and_leaves_no_process(
    number: signal.Signals, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_SKY_SLOW", "1")
    (tmp_path / "job.yaml").write_text("resources: {cloud: gcp}\nworking_dir: .\nrun: echo\n")
    process = start_python("-m", "oumi", "launch", "up", "-c", "job.yaml", "--cluster", "one", folder=tmp_path)
    wait_for(lambda: (home / "waiting").exists())
    process.send_signal(number)
    _, errors = process.communicate()
    driver = int((home / "pid").read_text())
    wait_for(lambda: not is_alive(driver))
    assert (home / "taken_back").exists() == (number == signal.SIGINT)
    if number == signal.SIGINT:
        assert "cancelled; machines may have been started: see `oumi launch status`" in errors
        assert list((tmp_path / "cache" / "launch").iterdir()) == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
