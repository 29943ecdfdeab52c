# SPDX-License-Identifier: Apache-2.0
"""A run of a peer in processes of its own: its measurements, and the work of other programs meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer
from benchmarks.sft.workload import MAX_LENGTH, Workload, place_rows

DRIVERS = Path(__file__).parents[1] / "peers"
SOURCE = Path(__file__).parents[2] / "src"
BATCH = 8
LEARNING_RATE = 1e-4
NUM_THREADS = 2
_DATA_SEED = 42
_LOOK_EVERY_S = 0.05


class PeerError(Exception):
    """A peer that ended with an error."""


@dataclass(frozen=True)
class Steps:
    """The steps of a run, measured by the run itself."""

    walls_s: tuple[float, ...]
    """Of each step; the first holds the start-up."""
    cpus_s: tuple[float, ...]
    """Of each step, of all ranks together."""
    losses: tuple[float, ...]
    peak_bytes: int
    """Of the rank that has the highest."""
    first_step_s: float
    """From the start of the process to the end of its first step."""
    versions: Mapping[str, str]
    rank_peaks_bytes: tuple[int, ...] = ()
    """Of each rank, where drivers measure them."""
    sent_bytes: tuple[int, ...] = ()
    """What all ranks sent to each other in each step, where drivers measure it; the first holds the start-up."""


@dataclass(frozen=True)
class Run:
    """A run, measured from outside."""

    steps: Steps
    wall_s: float
    cpu_s: float
    contention: float
    """Share of the machine's busy time that other programs used."""


@dataclass(frozen=True)
class Task:
    """What every run of a comparison shares."""

    work: Workload
    num_steps: int
    folder: Path
    """Where runs write; emptied before each."""


def run_peer(task: Task, peer: Peer, python: Path | str, packages: Sequence[str]) -> Run:
    """Trains the task's steps with a peer, and returns their measurements. Raises PeerError if it fails."""
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    command, log, first_line = _command(task, peer, python, packages), task.folder / "log.txt", _first_line(task, peer)
    with log.open("w") as file:
        # Read just before and after the run, so that their difference is the work of all programs meanwhile.
        busy, started = busy_s(), time.monotonic()
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_variables(task, peer), process_group=0
        )
        with ended(child):
            first = wait_for(first_line, child) if first_line else 0.0
            _, status, used = os.wait4(child.pid, 0)  # unlike Popen.wait, it returns the CPU time of this child alone
            child.returncode = os.waitstatus_to_exitcode(status)
        wall, busy = time.monotonic() - started, busy_s() - busy
    if child.returncode:
        raise PeerError(f"ended with {child.returncode}\n" + "\n".join(_end_of(log)))
    if first_line:
        steps = _read_metrics(first_line, first - started)
    else:
        steps = read_results(task.folder, started, peer.num_ranks)
    if len(steps.losses) != task.num_steps or len(steps.walls_s) != task.num_steps:
        raise PeerError(f"took {len(steps.walls_s)} steps and reported {len(steps.losses)} losses")
    cpu = used.ru_utime + used.ru_stime
    return Run(steps, wall, cpu, contention(cpu, busy))


def launcher(num_ranks: int) -> list[str]:
    """Returns the arguments of Python that start a script once for each rank; none for a single one."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)] if num_ranks > 1 else []


@contextmanager
def ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends a process group if the block is left before its process has ended, for instance by Ctrl-C."""
    try:
        yield
    finally:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGTERM)  # which a launcher passes on to its ranks
            child.wait()


def contention(ours_s: float, busy: float) -> float:
    """Returns the share of the machine's busy seconds that were not ours."""
    return max(0.0, 1 - ours_s / busy) if busy > 0 else 0.0


def busy_s(stat: str | None = None) -> float:
    """Returns the busy seconds of all cores since boot, including those that a hypervisor took."""
    line = (stat or Path("/proc/stat").read_text()).splitlines()[0]
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(ticks) for ticks in line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _first_line(task: Task, peer: Peer) -> Path | None:
    return None if peer.driver else task.folder / "out" / "metrics.jsonl"


def wait_for(path: Path, child: subprocess.Popen[bytes]) -> float:
    """Waits until a file has content or the process ends, and returns the time."""
    # WNOWAIT leaves the child to be reaped by wait4.
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if path.exists() and path.stat().st_size:
            break
        time.sleep(_LOOK_EVERY_S)
    return time.monotonic()


def _end_of(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-15:]


def _command(task: Task, peer: Peer, python: Path | str, packages: Sequence[str]) -> list[str]:
    """Returns the command of a run, after writing its files."""
    if peer.driver is None:
        return [str(python), "-m", "oumi", "train", "-c", str(write_config(task, peer))]
    path = task.folder / "job.json"
    ours = {"config": str(write_config(task, peer))} if peer.environment is None else {}
    path.write_text(json.dumps({**_job(task, peer, packages), **ours}))
    return [str(python), *launcher(peer.num_ranks), str(DRIVERS / peer.driver), str(path)]


def _job(task: Task, peer: Peer, packages: Sequence[str]) -> dict[str, Any]:
    return {
        "model": str(task.work.model),
        "rows": str(task.work.rows),
        "out": str(task.folder / "out"),
        "result": str(task.folder / "result.json"),
        "steps": task.num_steps,
        "batch": BATCH // peer.num_ranks,
        "learning_rate": LEARNING_RATE,
        "max_length": MAX_LENGTH,
        "packages": list(packages),
        "options": dict(peer.options),
    }


def _variables(task: Task, peer: Peer) -> dict[str, str]:
    """Returns the environment: two threads in all, no GPU, no network, and caches of its own, for the same start."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(NUM_THREADS // peer.num_ranks))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
    caches = {name: str(task.folder / "caches") for name in ("HF_HOME", "OUMI_CACHE_DIR")}
    ours = {"PYTHONPATH": str(SOURCE)} if peer.environment is None else {}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OUMI_WITHOUT")}
    return {**kept, **threads, **offline, **caches, "CUDA_VISIBLE_DEVICES": "", **ours, **peer.variables}


def write_config(task: Task, peer: Peer) -> Path:
    """Writes the config of a run of this repository, and its rows, ordered so that its steps are the same."""
    path = place_rows(task.work.rows, task.folder / "rows.jsonl", _DATA_SEED)
    only_answers, are_pairs = peer.options.get("answers"), task.work.are_pairs
    targets = {"train_target": "ALL_ASSISTANT_TURNS"} if only_answers else {"collator_name": "text_with_padding"}
    dataset = {"dataset_name": "preference_pairs_jsonl" if are_pairs else "text_sft", "dataset_path": str(path)}
    config = {
        "model": {
            "model_name": str(task.work.model),
            "model_max_length": MAX_LENGTH,
            "torch_dtype_str": "float32",
        },
        "data": {"train": {"datasets": [dataset], **({} if are_pairs else targets)}},
        "peft": peer.options.get("peft", {}),
        "training": {
            "trainer_type": peer.options.get("trainer_type", "OUMI"),
            "output_dir": str(task.folder / "out"),
            "per_device_train_batch_size": BATCH // peer.num_ranks,
            "max_steps": task.num_steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "data_seed": _DATA_SEED,
            "save_steps": 0,
            "save_final_model": False,
            "enable_tensorboard": False,
            **peer.options.get("training", {}),
        },
    }
    if strategy := peer.options.get("sharding_strategy"):
        config["fsdp"] = {"enable_fsdp": True, "sharding_strategy": strategy}
    config_path = task.folder / "config.yaml"
    config_path.write_text(json.dumps(config))
    return config_path


def _read_metrics(path: Path, first_step_s: float) -> Steps:
    from importlib.metadata import version

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Steps(
        walls_s=tuple(record["step_time_s"] for record in lines),
        cpus_s=tuple(record["cpu_time_s"] for record in lines),
        losses=tuple(record["loss"] for record in lines),
        peak_bytes=max(record["peak_memory_bytes"] for record in lines),
        first_step_s=first_step_s,
        versions={name: version(name) for name in ("torch", "oumi", "transformers")},
    )


def read_results(folder: Path, started: float, num_ranks: int = 1) -> Steps:
    """Returns the steps of a driver, from the results of all of its ranks; times and losses are those of the first.

    Args:
        folder: Has `result.json` of the first rank, `result.1.json` of the next one, and so on.
        started: When the run began, by the clock of the marks.
        num_ranks: Number of ranks.
    """
    names = ["result.json", *(f"result.{rank}.json" for rank in range(1, num_ranks))]
    results = [json.loads((folder / name).read_text()) for name in names]
    counts = [len(result["marks"]) for result in results]
    if min(counts) == 0 or min(counts) != max(counts):
        raise PeerError(f"expected as many steps on each rank, got {', '.join(map(str, counts))}")
    walls, cpus, _faults, sent = zip((started, 0.0, 0, 0), *results[0]["marks"], strict=True)
    for result in results[1:]:
        cpus = tuple(a + b for a, b in zip(cpus, (0.0, *(mark[1] for mark in result["marks"])), strict=True))
    peaks = tuple(result["peak_bytes"] for result in results)
    return Steps(
        walls_s=_between(walls),
        cpus_s=_between(cpus),
        losses=tuple(results[0]["losses"]),
        peak_bytes=max(peaks),
        first_step_s=walls[1] - started,
        versions=results[0]["versions"],
        rank_peaks_bytes=peaks,
        sent_bytes=_between(sent),
    )


def _between(marks: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(b - a for a, b in pairwise(marks))
