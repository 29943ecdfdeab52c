# SPDX-License-Identifier: Apache-2.0
"""Options, states and names of clusters with a scheduler, and PBS by small programs in its place."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from oumi.core.configs import JobConfig, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.launcher import ClusterUnreachableError, JobState, LauncherError, MissingToolError
from oumi.core.launcher.batch import BatchCloud
from oumi.core.launcher.batch_cluster import BatchCluster
from oumi.core.launcher.batch_script import batch_script
from oumi.core.launcher.schedulers import PBS, SLURM
from oumi.core.launcher.sites import SITES
from oumi.launcher import Launcher
from tests.core.launcher.fake_pbs import write_programs


def job_of(
    cloud: str = "slurm", run: str = "true", setup: str = "", num_nodes: int = 1, **resources: object
) -> JobConfig:
    keys = {"resources": {"cloud": cloud, **resources}, "run": run, "setup": setup, "num_nodes": num_nodes}
    return JobConfig.model_validate(keys)


def options_of(job: JobConfig, queue: str = "") -> list[str]:
    site = SITES[job.resources.cloud]
    lines = batch_script(job, site, queue, "files").files["job.sh"].splitlines()
    return [line.partition(" ")[2] for line in lines if line.startswith(site.scheduler.directive)]


OWN = ["--export=ALL", "--open-mode=append", "--requeue"]
WARNED = "--signal=B:USR1@120"


@pytest.mark.parametrize(
    ("accelerators", "gres"),
    [
        ("A100:4", "gpu:A100:4"),
        ("A100", "gpu:A100:1"),
        ("4", "gpu:4"),
        (":8", "gpu:8"),
        ("A100-80GB:2", "gpu:A100-80GB:2"),
    ],
)
def test_accelerators_become_generic_resources(accelerators: str, gres: str) -> None:
    assert options_of(job_of(accelerators=accelerators))[-2:] == [f"--gres={gres}", WARNED]


def test_keys_become_options_and_lines_of_the_job_win() -> None:
    setup = "#SBATCH -N 3 --mem 0\n  #SBATCH --not-at-the-start\n#SBATCH words\n#SBATCH -pgpu  # a queue\n"
    job = job_of(setup=setup, run="#SBATCH --time=1:0:0\ntrue", num_nodes=2, cpus="8+", memory="32")
    script = batch_script(job, SITES["slurm"], "", "files")
    assert options_of(job) == [
        "--ntasks-per-node=1", *OWN, "--cpus-per-task=8", WARNED, "-N 3 --mem 0", "-pgpu  # a queue", "--time=1:0:0",
    ]  # fmt: skip
    assert script.warnings == (
        "`#SBATCH words` is not used: expected an option",
        "`--nodes=2` is not used, since a #SBATCH line of the job sets nodes",
        "`--mem=32G` is not used, since a #SBATCH line of the job sets mem",
    )


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"accelerators": "A100:none"}, "resources.accelerators: is 'A100:none': expected such as A100:4 or 4"),
        ({"accelerators": "A100:0"}, "resources.accelerators: is 'A100:0'"),
        ({"accelerators": "A100:0.5"}, "resources.accelerators: is 'A100:0.5'"),
        ({"cpus": "many"}, "resources.cpus: is 'many': expected such as 8"),
        ({"memory": "0"}, "resources.memory: is '0'"),
    ],
)
def test_a_number_that_no_scheduler_takes_is_refused(resources: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options_of(job_of(**resources))


def test_every_key_that_is_not_carried_out_is_told() -> None:
    keys = {
        "region": "r", "zone": "z", "instance_type": "i", "disk_size": 1, "disk_tier": "low", "image_id": "docker:i",
        "image_id_map": {"r": "i"}, "config_overrides": {"a": 1}, "use_spot": True, "accelerators": "A100:4",
        "cpus": "8", "memory": "8",
    }  # fmt: skip
    for cloud, untold in (("slurm", {"accelerators", "cpus", "memory"}), ("perlmutter", set())):
        warnings = batch_script(job_of(cloud, **keys), SITES[cloud], "regular", "files").warnings
        assert {warning.partition(":")[0].removeprefix("resources.") for warning in warnings} == keys.keys() - untold


@pytest.mark.parametrize(
    ("run", "setup", "starts"),
    [
        ("oumi train", "", True),
        ("# srun is not used\noumi train", "", True),
        ("srun -l oumi train", "", False),
        ("set -e\nTIME=5 mpirun oumi train", "", False),
        ("oumi train", "srun hostname", True),
    ],
)
def test_run_starts_on_each_node_unless_it_does_so_itself(run: str, setup: str, starts: bool) -> None:
    script = batch_script(job_of(run=run, setup=setup, num_nodes=2), SITES["slurm"], "", "files")
    assert ("run.sh" in script.files) is starts
    assert any("run starts on every node" in step for step in script.steps) is starts
    assert "run.sh" not in batch_script(job_of(run=run), SITES["slurm"], "", "files").files


@pytest.mark.parametrize(
    ("keys", "is_told"),
    [({}, True), ({"cpus": "8"}, False), ({"setup": "#SBATCH -c 8"}, False), ({"cloud": "perlmutter"}, False)],
)
def test_gpus_without_cpus_are_told(keys: dict[str, str], is_told: bool) -> None:
    job = job_of(**{"cloud": "slurm", "accelerators": "A100:4", **keys})  # type: ignore[arg-type]
    warnings = batch_script(job, SITES[job.resources.cloud], "", "files").warnings
    assert any(warning.startswith("resources.cpus: not set") for warning in warnings) is is_told


@pytest.mark.parametrize(
    ("limit", "is_warned"),
    [
        ("9", False),
        ("10", True),
        ("9:59", False),
        ("0:10:00", True),
        ("0-1", True),
        ("0-0:9", False),
        ("UNLIMITED", True),
    ],
)
def test_a_job_without_time_to_train_after_a_warning_gets_none(limit: str, is_warned: bool) -> None:
    assert (WARNED in options_of(job_of(setup=f"#SBATCH -t {limit}"))) is is_warned


@pytest.mark.parametrize(
    ("line", "key"),
    [("--output=x", "output"), ("-o x", "output"), ("-e x", "error"), ("--error x", "error"), ("-D /x", "chdir")],
)
def test_a_line_without_effect_is_told(line: str, key: str) -> None:
    [warning] = batch_script(job_of(setup=f"#SBATCH {line}\n"), SITES["slurm"], "", "files").warnings
    assert warning.startswith(f"{key} of a #SBATCH line is not used: ")


@pytest.mark.parametrize(("line", "returns"), [("", True), ("--signal=B:TERM@60", False), ("--no-requeue", False)])
def test_a_plan_says_that_a_job_returns_to_the_queue_only_if_it_does(line: str, returns: bool) -> None:
    steps = batch_script(job_of(setup=f"#SBATCH {line}\n" if line else ""), SITES["slurm"], "", "files").steps
    assert any("back into the queue" in step for step in steps) is returns


def test_the_name_in_a_line_is_the_name_of_the_job() -> None:
    job = job_of(setup="#SBATCH -J mine\n")
    job.name = "other"
    script = batch_script(job, SITES["slurm"], "", "files")
    assert (script.name, script.arguments) == ("mine", ())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "a\0b"}, "name: contains a NUL byte"),
        ({"name": "\ud800"}, r"name: contains U\+D800, which is no character"),
        ({"working_dir": "a\0b"}, "working_dir: contains a NUL byte"),
        ({"working_dir": "~nobody-of-this-name/x"}, "working_dir: ~nobody-of-this-name/x is not a directory"),
        ({"file_mounts": {"/x": "~nobody-of-this-name/x"}}, "~nobody-of-this-name/x does not exist"),
        ({"file_mounts": {"/x\0": "y"}}, "file_mounts.*: contains a NUL byte"),
        ({"file_mounts": {"~other/x": "/etc/hosts"}}, "file_mounts.~other/x: expected a file or directory below ~/"),
    ],
)
def test_a_text_that_no_script_can_hold_is_refused(keys: dict[str, object], message: str) -> None:
    job = job_of().model_copy(update=keys)
    with pytest.raises(ConfigError, match=message):
        BatchCloud("slurm").plan(job, "me@login")


@pytest.mark.parametrize("line", ["#SBATCH --array=1-3", "#SBATCH -a 1-3", "#SBATCH --comment='x"])
def test_a_line_that_no_launched_job_can_have_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="#SBATCH"):
        options_of(job_of(setup=line))


@pytest.mark.parametrize(
    ("line", "option", "key"),
    [
        ("--gpus-per-node=4", "--gres=gpu:A100:4", "gpus-per-node"),
        ("-G 4", "--gres=gpu:A100:4", "gpus"),
        ("--mem-per-cpu=4G", "--mem=32G", "mem-per-cpu"),
        ("--cpus-per-gpu=8", "--cpus-per-task=8", "cpus-per-gpu"),
        ("--no-requeue", "--requeue", "no-requeue"),
    ],
)
def test_a_line_that_says_the_same_by_another_option_wins(line: str, option: str, key: str) -> None:
    job = job_of(setup=f"#SBATCH {line}\n", accelerators="A100:4", cpus="8", memory="32")
    assert option not in options_of(job)
    assert line in options_of(job)
    [warning] = batch_script(job, SITES["slurm"], "", "files").warnings
    assert warning == f"`{option}` is not used, since a #SBATCH line of the job sets {key}"


@pytest.mark.parametrize(
    ("resources", "is_on_each"), [("select=1:ncpus=1+1:ncpus=2", True), ("nodes=2:ppn=4", True), ("select=1", False)]
)
def test_chunks_of_pbs_are_nodes(resources: str, is_on_each: bool) -> None:
    script = batch_script(job_of("polaris", setup=f"#PBS -l {resources}\n"), SITES["polaris"], "prod", "files")
    assert ("run.sh" in script.files) is is_on_each
    assert script.files["job.sh"].count("#PBS -l select") + script.files["job.sh"].count("#PBS -l nodes") == 1


@pytest.mark.parametrize("line", ["#SBATCH -N2", "#SBATCH --time=5 --nodes 2-4", "#SBATCH --nodes=2"])
def test_nodes_of_a_line_count(line: str) -> None:
    assert "run.sh" in batch_script(job_of(setup=line), SITES["slurm"], "", "files").files


def test_a_site_is_a_row_of_settings() -> None:
    assert options_of(job_of("polaris", num_nodes=10), "debug") == [
        "-l select=10:system=polaris", "-l place=scatter", "-q debug", "-r y",
    ]  # fmt: skip
    lines = "#PBS -l select=2:system=polaris:ncpus=1\n#PBS -l walltime=1\n#PBS -l filesystems=home\n#PBS -A mine\n"
    assert options_of(job_of("polaris", setup=lines), "prod") == [
        "-l place=scatter", "-q prod", "-r y", "-l select=2:system=polaris:ncpus=1", "-l walltime=1",
        "-l filesystems=home", "-A mine",
    ]  # fmt: skip
    assert options_of(job_of("frontier"), "batch")[:3] == ["--nodes=1", "--ntasks-per-node=1", "--partition=batch"]
    assert "--gpus-per-node=4" in options_of(job_of("perlmutter"), "debug")


@pytest.mark.parametrize(("name", "option"), [("a 'job'; é", "-Na-job"), ("$(x)", "-Nx"), ("...", "-Noumi")])
def test_a_name_becomes_one_that_pbs_takes(name: str, option: str) -> None:
    job = job_of("polaris")
    job.name = name
    assert batch_script(job, SITES["polaris"], "prod", "files").arguments == (option,)


def test_every_word_of_slurm_has_a_state_and_others_are_unknown() -> None:
    output = "7|PENDING|Resources\n8|COMPLETING|None\n9|SUSPENDED|None\n10|OUT_OF_MEMORY|OutOfMemory\n11|NEW_WORD|\n"
    states = SLURM.parse(output + "7|FAILED\n12|CANCELLED by 1000\n13|COMPLETED\n")
    assert {job_id: SLURM.state(word) for job_id, (word, _) in states.items()} == {
        "7": JobState.PENDING, "8": JobState.RUNNING, "9": JobState.RUNNING, "10": JobState.FAILED,
        "11": JobState.UNKNOWN, "12": JobState.CANCELLED, "13": JobState.SUCCEEDED,
    }  # fmt: skip
    assert states["7"] == ("PENDING", "Resources")
    assert states["11"] == ("NEW_WORD", "")


def test_states_of_pbs() -> None:
    output = '{"Jobs": {"1.a": {"job_state": "F", "Exit_status": 0}, "2.a": {"job_state": "F", "Exit_status": 271}, '
    output += '"3.a": {"job_state": "Q", "comment": "Not Running: no nodes"}, "4.a": {"job_state": "Y"}}}'
    states = PBS.parse(output)
    assert [PBS.state(word) for word, _ in states.values()] == [
        JobState.SUCCEEDED, JobState.FAILED, JobState.PENDING, JobState.UNKNOWN,
    ]  # fmt: skip
    assert states["3.a"] == ("Q", "Not Running: no nodes")
    assert PBS.parse("") == {}


@pytest.mark.parametrize(
    ("cloud", "name", "message"),
    [
        ("slurm", "-oProxyCommand=touch x", "is not a machine: expected user@host"),
        ("slurm", "me@host; touch x", "is not a machine"),
        ("frontier", "bach.me", "is no cluster of frontier, did you mean 'batch'"),
        ("frontier", "batch", "expected <queue>.<user> with a queue of batch, extended"),
        ("polaris", "debug.-oProxyCommand=x", "is not a machine"),
    ],
)
def test_a_name_that_is_no_cluster_is_refused(cloud: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchCloud(cloud).get_cluster(name)


def test_the_user_of_a_site_is_part_of_its_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUMI_DIR", str(tmp_path))
    launcher = Launcher()
    job = job_of("frontier", setup="#SBATCH -A abc123\n")
    job.working_dir = str(tmp_path)
    with pytest.raises(ConfigError, match="user: required on frontier at launch"):
        launcher.plan(job)
    steps = launcher.plan(job, "extended.me").steps
    assert "me@frontier.olcf.ornl.gov:/lustre/orion/abc123/scratch/$USER/oumi_launcher" in steps[0]
    job.user = "you"
    assert "you@frontier.olcf.ornl.gov" in launcher.plan(job).steps[0]
    assert "user: 'you' is not used, since the cluster is extended.me" in launcher.plan(job, "extended.me").warnings
    job.setup = None
    with pytest.raises(ConfigError, match="frontier needs a line `#SBATCH --account=<project>`"):
        launcher.plan(job)


def test_a_plan_tells_what_is_missing_and_what_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'empty'}:{os.path.dirname(shutil.which('git') or '')}")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").write_bytes(b"x" * 1_500_000)
    job = job_of()
    job.working_dir, job.secrets = str(tmp_path / "work"), ["A_SECRET_THAT_IS_NOT_SET"]
    plan = BatchCloud("slurm").plan(job, "me@login")
    assert f"upload {tmp_path / 'work'}: 1 files, 1.5 MB to files in that folder" in plan.steps
    assert any("A_SECRET_THAT_IS_NOT_SET: not set" in problem for problem in plan.missing)
    if shutil.which("sbatch") is None:
        assert any(
            "`sbatch` of Slurm is not on PATH" in problem for problem in BatchCloud("slurm").plan(job, None).missing
        )
        with pytest.raises(MissingToolError, match="--cluster user@host"):
            BatchCloud("slurm").up_cluster(job, None)


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("/x", "gs://bucket/x", "gs://bucket/x is no file; copy it in `setup`"),
        ("~/x", "./absent", "./absent does not exist"),
    ],
)
def test_a_mount_that_cannot_be_is_refused(target: str, source: str, message: str) -> None:
    job = job_of()
    job.file_mounts = {target: source}
    with pytest.raises(ConfigError, match=f"file_mounts.{target}: {message}"):
        BatchCloud("slurm").plan(job, "me@login")


def test_a_bucket_is_refused() -> None:
    keys = {
        "storage_mounts": {"/out": {"source": "gs://b", "store": "gcs"}},
        "resources": {"cloud": "slurm"},
        "run": "x",
    }
    with pytest.raises(ConfigError, match=r"storage_mounts\./out: slurm mounts no buckets"):
        BatchCloud("slurm").plan(JobConfig.model_validate(keys), "me@login")


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "OUMI_JOB_RESTARTS"])
def test_a_run_that_comes_back_from_the_queue_resumes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig.model_validate({"model": {"model_name": "m"}})
    monkeypatch.setenv(name, "0")
    assert config.on_attempt() is config
    monkeypatch.setenv(name, "2")
    assert config.on_attempt().training.try_resume_from_last_checkpoint is True


@pytest.fixture
def polaris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BatchCluster:
    monkeypatch.setenv("PATH", f"{write_programs(tmp_path)}:{os.environ['PATH']}")
    monkeypatch.setenv("OUMI_DIR", str(tmp_path / "oumi"))
    cluster = BatchCloud("polaris").get_cluster("debug.me")
    assert isinstance(cluster, BatchCluster)
    return cluster


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_a_job_goes_through_pbs(polaris: BatchCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s3cret'\n")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a file").write_text("uploaded")
    job = job_of("polaris", 'echo "rank $PMI_RANK: ${#A_SECRET} $(cat a*)"', "#PBS -A mine\necho setup\n", 2)
    job.name, job.secrets, job.working_dir, job.user = "a job", ["A_SECRET"], str(tmp_path / "work"), "me"
    launcher = Launcher()
    cluster, status = launcher.up(job, "debug.me")
    lines = "".join(cluster.logs(status.id)).splitlines()
    assert sorted(lines) == ["rank 0: 8 uploaded", "rank 1: 8 uploaded", "setup"]
    last = cluster.get_job(status.id)
    assert last is not None
    assert (last.name, last.state, last.exit_code) == ("a job", JobState.SUCCEEDED, 0)
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert set((tmp_path / "hosts").read_text().split()) == {"me@polaris.alcf.anl.gov"}
    assert [item.name() for item in BatchCloud("polaris").list_clusters()] == ["debug.me"]
    launcher.down("polaris", "debug.me")
    assert BatchCloud("polaris").list_clusters() == []
    (tmp_path / "jobs" / status.id / "forgotten").touch()
    forgotten = cluster.get_job(status.id)
    assert forgotten is not None
    assert forgotten.state == JobState.SUCCEEDED


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_a_job_of_pbs_is_cancelled(polaris: BatchCluster, tmp_path: Path) -> None:
    status = polaris.run_job(job_of("polaris", "sleep 100"))
    deadline_s = time.monotonic() + 120
    while not list((tmp_path / "home").rglob("started")):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert polaris.cancel_job(status.id).state == JobState.CANCELLED
    assert "".join(polaris.logs(status.id)) in ("", "Terminated\n")  # what bash says of a program that was ended
    with pytest.raises(LauncherError, match=r"cluster debug\.me has no job '77'"):
        polaris.cancel_job("77")


def test_a_cluster_that_is_gone_is_told_and_can_be_forgotten(polaris: BatchCluster, tmp_path: Path) -> None:
    known = tmp_path / "oumi" / "launcher" / "polaris.clusters"
    known.mkdir(parents=True)
    for name in ("debug.me", "prod.me"):
        (known / name).touch()
    (tmp_path / "unreachable").touch()
    reason = "me@polaris.alcf.anl.gov: ssh: connect to host .* No route to host"
    for action in (polaris.get_jobs, polaris.down):
        with pytest.raises(ClusterUnreachableError, match=reason):
            action()
    assert [cluster.name() for cluster in BatchCloud("polaris").list_clusters()] == ["prod.me"]


def test_a_job_that_is_cancelled_before_it_runs_leaves_no_secret(
    polaris: BatchCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "s3cret")
    (tmp_path / "full").touch()
    job = job_of("polaris")
    job.secrets = ["A_SECRET"]
    status = polaris.run_job(job)
    assert status.state == JobState.PENDING
    assert [path.stat().st_mode & 0o777 for path in tmp_path.rglob("secrets.sh")] == [0o600]
    assert polaris.cancel_job(status.id).state == JobState.CANCELLED
    assert list(tmp_path.rglob("secrets.sh")) == []


def test_the_jobs_of_another_queue_are_left_alone(polaris: BatchCluster, tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    status = polaris.run_job(job_of("polaris"))
    other = BatchCloud("polaris").get_cluster("prod.me")
    assert other is not None
    assert other.get_jobs() == []
    other.down()
    assert [(job.id, job.state) for job in polaris.get_jobs()] == [(status.id, JobState.PENDING)]


def test_a_job_is_found_again_after_the_connection_is_lost(polaris: BatchCluster, tmp_path: Path) -> None:
    (tmp_path / "lost").touch()
    with pytest.raises(ClusterUnreachableError, match="may have been submitted before: see `oumi launch status`"):
        polaris.run_job(job_of("polaris"))
    (tmp_path / "unreachable").unlink()
    [cluster] = BatchCloud("polaris").list_clusters()
    assert [job.state for job in cluster.get_jobs()] == [JobState.PENDING]


def test_an_answer_of_the_scheduler_that_cannot_be_read_is_told(polaris: BatchCluster, tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    polaris.run_job(job_of("polaris"))
    (tmp_path / "bin" / "qstat").write_text("#!/bin/sh\necho '{'\n")
    with pytest.raises(ClusterUnreachableError, match="PBS answers what cannot be read"):
        polaris.get_jobs()


def test_a_job_for_another_user_is_told(
    polaris: BatchCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full").touch()
    job = job_of("polaris")
    job.user = "you"
    polaris.run_job(job)
    assert "user: 'you' is not used, since the cluster is debug.me" in caplog.text


def test_output_that_breaks_off_says_that_the_job_may_go_on(polaris: BatchCluster, tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    status = polaris.run_job(job_of("polaris"))
    (tmp_path / "unreachable").touch()
    command = f"oumi launch logs --cluster debug.me --job-id {status.id} -f"
    with pytest.raises(ClusterUnreachableError, match=f"No route to host\nJob {status.id} may go on; .*{command}"):
        next(polaris.logs(status.id))


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_job_that_ends_before_it_is_cancelled_has_ended(
    has_ended: bool, polaris: BatchCluster, tmp_path: Path
) -> None:
    (tmp_path / "full").touch()
    status = polaris.run_job(job_of("polaris"))
    end = f"echo 0 > {tmp_path}/jobs/$1/exit\n" if has_ended else ""
    (tmp_path / "bin" / "qdel").write_text(f"#!/bin/sh\n{end}echo 'qdel: refused' >&2\nexit 35\n")
    if has_ended:
        assert polaris.cancel_job(status.id).state == JobState.SUCCEEDED
    else:
        with pytest.raises(LauncherError, match="qdel: refused"):
            polaris.cancel_job(status.id)
