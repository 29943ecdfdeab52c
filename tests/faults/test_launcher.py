# SPDX-License-Identifier: Apache-2.0
"""A launcher ends as the rank that failed first did, passes signals on, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_ranks import DRIVER, LIMIT_S, faulty_config
from tests.fork_server import ForkedProcess, run_python, start_python
from tests.ranks import ends_of, free_port, run_ranks, start_ranks
from tests.runs import records, weights

LAUNCH = ("-m", "oumi", "distributed", "torchrun")
WORKER = """
import os, signal, sys, time
from pathlib import Path
from oumi.core.errors import DataError, PreemptedError
from oumi.core.system.exits import exits_explained
from oumi.core.system.signals import is_stop_requested, request_stops, signals_answered

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])

def steps(seconds=90):
    with signals_answered():
        request_stops()
        Path(f"pid_{rank}").write_text(str(os.getpid()))
        for _ in range(int(seconds / 0.05)):
            time.sleep(0.05)
            if is_stop_requested():
                raise PreemptedError("stopped after step 3")

with exits_explained():
    exec(sys.argv[1])
"""
HOST = socket.gethostname()


@pytest.fixture
def worker(tmp_path: Path) -> str:
    (tmp_path / "worker.py").write_text(WORKER)
    return str(tmp_path / "worker.py")


def run_workers(folder: Path, worker: str, code: str, *flags: str) -> tuple[int, str]:
    """Returns the exit code of a launcher of two workers that run code, and what was printed."""
    done = run_python(*LAUNCH, "--nproc-per-node=2", *flags, worker, code, folder=folder)
    return done.returncode, done.stdout + done.stderr


def pids_of(folder: Path) -> list[int]:
    """Returns the ids of both workers, once they wait for a signal."""
    files = [folder / "pid_0", folder / "pid_1"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    for pid in pids:
        while Path(f"/proc/{pid}/stat").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.02)


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("code", "exit_code", "last_line"),
    [
        ("if rank: raise DataError('chats.jsonl:3: bad')\nsteps()", 65, f"Error: rank 1 on {HOST}: chats.jsonl:3: bad"),
        ("time.sleep(rank / 4); raise DataError('bad')", 65, f"Error: rank 0 on {HOST}: bad"),
        ("if rank: os.kill(os.getpid(), signal.SIGKILL)\nsteps()", 1, f"Error: rank 1 on {HOST} was killed by SIGKILL"),
        ("if rank == 0: os._exit(3)\nsteps()", 3, f"Error: rank 0 on {HOST} exited with code 3"),
        ("if rank: raise ValueError('boom')\nsteps()", 1, f"Error: rank 1 on {HOST}: ValueError: boom"),
        ("if rank: raise PreemptedError('stopped after step 3')\nsteps()", 75, "Error: stopped after step 3"),
    ],
    ids=["mistake", "mistake of all", "killed", "exit code", "traceback", "stopped"],
)
def test_the_first_failure_is_shown_once_and_last(
    tmp_path: Path, worker: str, code: str, exit_code: int, last_line: str
) -> None:
    began = time.monotonic()
    returncode, text = run_workers(tmp_path, worker, code)
    assert time.monotonic() - began < 45, "rank 0 would go on for 90 s"
    assert returncode == exit_code, text
    assert text.splitlines()[-1].startswith(last_line), text
    assert sum(line.startswith("Error: ") for line in text.splitlines()) == 1, text
    assert text.count("Traceback") == ("boom" in code)
    assert "=====" not in text


@pytest.mark.slow
def test_workers_that_end_well_leave_nothing_to_say(tmp_path: Path, worker: str) -> None:
    assert run_workers(tmp_path, worker, "print(rank, flush=True)")[0] == 0


@pytest.mark.slow
def test_a_failed_attempt_is_restarted(tmp_path: Path, worker: str) -> None:
    code = "if rank and attempt < 2: os._exit(1)\nprint('attempt', attempt, flush=True); time.sleep(0.3)"
    returncode, text = run_workers(tmp_path, worker, code, "--max-restarts=2")
    assert returncode == 0, text
    assert text.count("attempt 2") == 2


def test_the_failure_of_an_attempt_is_shown_before_the_next_one(tmp_path: Path, worker: str) -> None:
    code = "if rank and attempt < 1: raise ValueError('boom')\ntime.sleep(0.3)"
    returncode, text = run_workers(tmp_path, worker, code, "--max-restarts=1")
    assert returncode == 0, text
    assert text.count(f"Error: rank 1 on {HOST}: ValueError: boom") == 1


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path: Path, worker: str) -> None:
    code = "print('attempt', attempt, flush=True)\nif rank: raise DataError('bad')\nsteps()"
    returncode, text = run_workers(tmp_path, worker, code, "--max-restarts=2")
    assert returncode == 65, text
    assert text.splitlines()[-1] == f"Error: rank 1 on {HOST}: bad"
    assert "attempt 1" not in text


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_reaches_the_workers_and_the_launcher_waits_for_them(tmp_path: Path, worker: str, name: str) -> None:
    running = start_python(*LAUNCH, "--nproc-per-node=2", worker, "steps()", folder=tmp_path)
    pids = pids_of(tmp_path)
    running.send_signal(getattr(signal, name))
    text = "".join(running.communicate(timeout=60))
    assert running.returncode == 75, text
    assert text.splitlines()[-1] == "Error: stopped after step 3"
    assert f"{name}: stopping after this step" in text
    wait_until_gone(pids)


def test_a_killed_launcher_leaves_no_worker(tmp_path: Path, worker: str) -> None:
    running = start_python(*LAUNCH, "--nproc-per-node=2", worker, "steps()", folder=tmp_path)
    pids = pids_of(tmp_path)
    running.kill()
    running.communicate(timeout=60)
    wait_until_gone(pids)


def test_workers_without_an_answer_to_a_signal_count_as_stopped(tmp_path: Path) -> None:
    code = "import os, time\nopen(f'pid_{os.environ[\"RANK\"]}', 'w').write(str(os.getpid()))\ntime.sleep(30)"
    (tmp_path / "plain.py").write_text(code)
    running = start_python(*LAUNCH, "--nproc-per-node=2", str(tmp_path / "plain.py"), folder=tmp_path)
    pids = pids_of(tmp_path)
    running.send_signal(signal.SIGTERM)
    text = "".join(running.communicate(timeout=60))
    assert running.returncode == 75
    assert "stopped by SIGTERM before the first step" in text
    wait_until_gone(pids)


def test_a_port_in_use_is_reported(tmp_path: Path, worker: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        returncode, text = run_workers(tmp_path, worker, "pass", f"--master-port={port}")
    assert returncode == 2, text
    assert f"port {port} of this machine is in use" in text
    assert "Traceback" not in text


def test_flags_of_the_user_win_over_the_scheduler(tmp_path: Path, worker: str) -> None:
    code = "print(os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'], flush=True)"
    port = str(free_port())
    done = run_python(
        *LAUNCH, "--nnodes=1", "--master-port", port, "--nproc-per-node=3", worker, code, folder=tmp_path,
        SLURM_NODELIST="a,b", SLURM_JOBID="1", MASTER_ADDR="elsewhere",  # a shell of salloc has no SLURM_NODEID
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"3 {port}"] * 3, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--no-python", "no-such-command"), "the processes cannot be started: [Errno 2] No such file or directory"),
        (("--rdzv-backend=foo", "--rdzv-endpoint=localhost:0", "x.py"), "--rdzv-backend is 'foo': The rendezvous"),
    ],
    ids=["command", "backend"],
)
def test_what_the_agent_refuses_is_reported(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = run_python(*LAUNCH, "--nproc-per-node=2", *flags, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"Error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--max-restarts=1",)], ids=["static", "c10d"])
def test_a_signal_ends_a_launcher_that_waits_for_the_first_machine(tmp_path: Path, flags: tuple[str, ...]) -> None:
    place = ("--nnodes=2", "--node-rank=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}")
    running = start_python(*LAUNCH, *place, *flags, "x.py", folder=tmp_path)
    time.sleep(8)
    running.send_signal(signal.SIGTERM)
    began = time.monotonic()
    text = "".join(running.communicate(timeout=60))
    assert time.monotonic() - began < 5
    assert running.returncode == 75
    assert text.splitlines()[-1] == "Error: stopped by SIGTERM before the first step; run the same command again"


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    done = run_python(*LAUNCH, "-m", "oumi", "--version", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a config, and the output of two ranks that trained it without a fault."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = faulty_config(folder, max_steps=12)
    config.training.output_dir = str(folder / "whole")
    config.to_yaml(folder / "whole.yaml")
    ends = run_ranks(2, "-m", "oumi", "train", "-c", str(folder / "whole.yaml"), folder=folder)
    assert [code for code, _ in ends] == [0, 0], ends
    return folder


@pytest.fixture
def config(uninterrupted: Path, tmp_path: Path) -> Path:
    """Returns the config of the uninterrupted run, for another output directory."""
    text = (uninterrupted / "train.yaml").read_text()
    (tmp_path / "train.yaml").write_text(text.replace(str(uninterrupted / "out"), str(tmp_path / "out")))
    return tmp_path / "train.yaml"


def assert_like(output_dir: Path, uninterrupted: Path) -> None:
    expected = weights(uninterrupted / "whole")
    actual = weights(output_dir)
    assert actual.keys() == expected.keys()
    assert all((actual[name] == expected[name]).all() for name in expected)
    steps = [(record["step"], record["loss"]) for record in records(output_dir)]
    assert steps == [(record["step"], record["loss"]) for record in records(uninterrupted / "whole")]


FAULTS = {
    "forward": "1:modeling_llama.py:forward:40:kill",
    "backward": "1:linear_cross_entropy.py:backward:15:kill",
    "save": "0:state.py:save_state:2:kill",
    "error": "1:batch.py:collate:17:raise",
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("moment", FAULTS)
def test_a_restarted_run_equals_one_without_a_fault(uninterrupted: Path, config: Path, moment: str) -> None:
    done = run_python(*LAUNCH, "--nproc-per-node=2", "--max-restarts=2", str(DRIVER), "train", "-c", str(config),
                      folder=Path(__file__).parents[2], FAULT=FAULTS[moment])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "restart 1 after a failure: the run resumes from its last checkpoint" in done.stderr
    assert_like(config.parent / "out", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [(), ("--standalone",), (f"--master-port={free_port()}",)], ids=["default", "standalone", "static"]
)
def test_plain_torchrun_restarts_too(uninterrupted: Path, config: Path, flags: tuple[str, ...]) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", *flags)
    done = run_python(*torchrun, str(DRIVER), "train", "-c", str(config), folder=Path(__file__).parents[2],
                      FAULT=FAULTS["forward"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_like(config.parent / "out", uninterrupted)


def started_run(config: Path, *flags: str) -> tuple[ForkedProcess, Path]:
    running = start_python(*LAUNCH, "--nproc-per-node=2", *flags, "-m", "oumi", "train", "-c", str(config))
    return running, config.parent / "out" / "metrics.jsonl"


def wait_for_line(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> Iterator[int]:
    yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_a_run_is_restarted_whenever_a_rank_is_killed(uninterrupted: Path, config: Path, moment: int) -> None:
    running, metrics = started_run(config, "--max-restarts=2")
    wait_for_line(metrics, 1 + moment % 4)
    time.sleep(moment * 0.013)
    pids = list(children_of(running.pid))
    os.kill(pids[moment % 2], signal.SIGKILL)
    text = "".join(running.communicate(timeout=120))
    assert running.returncode == 0, text
    assert_like(config.parent / "out", uninterrupted)
    wait_until_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_a_rank_killed_at_any_time_leaves_the_same_weights(uninterrupted: Path, config: Path, moment: int) -> None:
    command = ("-m", "oumi", "train", "-c", str(config), "--training.try_resume_from_last_checkpoint", "true")
    ranks = start_ranks(2, *command, folder=config.parent)
    time.sleep(0.5 + 0.06 * moment)
    ranks[moment % 2].kill()
    killed_s = time.monotonic()
    (code, text), _ = ends_of([ranks[1 - moment % 2], ranks[moment % 2]])
    assert time.monotonic() - killed_s < LIMIT_S
    if not (config.parent / "out" / "model.safetensors").exists():
        assert code == 1, text
        assert f"rank {moment % 2}" in text.splitlines()[-1]
    assert [code for code, _ in run_ranks(2, *command, folder=config.parent)] == [0, 0]
    assert_like(config.parent / "out", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"])
@pytest.mark.parametrize("command", ["torchrun", "train"])
def test_a_launched_run_goes_on_after_any_signal(uninterrupted: Path, config: Path, name: str, command: str) -> None:
    if command == "train":
        running = start_python("-m", "oumi", "train", "--nproc-per-node", "2", "-c", str(config))
        metrics = config.parent / "out" / "metrics.jsonl"
    else:
        running, metrics = started_run(config)
    wait_for_line(metrics, 2)
    pids = list(children_of(running.pid))
    running.send_signal(getattr(signal, name))
    text = "".join(running.communicate(timeout=60))
    assert running.returncode == (-signal.SIGKILL if name == "SIGKILL" else 75), text
    wait_until_gone(pids)
    ends = run_ranks(2, "-m", "oumi", "train", "-c", str(config), "--training.try_resume_from_last_checkpoint",
                     folder=config.parent)  # fmt: skip
    assert [code for code, _ in ends] == [0, 0], ends
    assert_like(config.parent / "out", uninterrupted)
