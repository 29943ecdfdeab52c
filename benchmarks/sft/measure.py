# SPDX-License-Identifier: Apache-2.0
"""A run of a peer in a process of its own: its measurements, and the work of other programs meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
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
    losses: tuple[float, ...]
    peak_bytes: int
    first_step_s: float
    """From the start of the process to the end of its first step."""
    versions: Mapping[str, str]


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
    path = task.folder / "job.json"
    if peer.driver is None:
        command = [str(python), "-m", "oumi", "train", "-c", str(write_config(task, peer))]
    else:
        command = [str(python), str(DRIVERS / peer.driver), str(path)]
        path.write_text(json.dumps(_job(task, peer, packages)))
    log, first_line = task.folder / "log.txt", _first_line(task, peer)
    with log.open("w") as file:
        # Read just before and after the run, so that their difference is the work of all programs meanwhile.
        busy, started = busy_s(), time.monotonic()
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_variables(task, peer))
        first = wait_for(first_line, child) if first_line else 0.0
        _, status, used = os.wait4(child.pid, 0)  # unlike Popen.wait, it returns the CPU time of this child alone
        child.returncode = os.waitstatus_to_exitcode(status)
        wall, busy = time.monotonic() - started, busy_s() - busy
    if child.returncode:
        raise PeerError(f"ended with {child.returncode}\n" + "\n".join(_end_of(log)))
    steps = _read_metrics(first_line, first - started) if first_line else _read_result(task.folder, started)
    if len(steps.losses) != task.num_steps or len(steps.walls_s) != task.num_steps:
        raise PeerError(f"took {len(steps.walls_s)} steps and reported {len(steps.losses)} losses")
    cpu = used.ru_utime + used.ru_stime
    return Run(steps, wall, cpu, contention(cpu, busy))


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


def _job(task: Task, peer: Peer, packages: Sequence[str]) -> dict[str, Any]:
    return {
        "model": str(task.work.model),
        "rows": str(task.work.rows),
        "out": str(task.folder / "out"),
        "result": str(task.folder / "result.json"),
        "steps": task.num_steps,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "max_length": MAX_LENGTH,
        "packages": list(packages),
        "options": dict(peer.options),
    }


def _variables(task: Task, peer: Peer) -> dict[str, str]:
    """Returns the environment: two threads, no network, and caches of the run's own, so that all begin alike."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(NUM_THREADS))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
    caches = {name: str(task.folder / "caches") for name in ("HF_HOME", "OUMI_CACHE_DIR")}
    ours = {"PYTHONPATH": str(SOURCE)} if peer.driver is None else {}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OUMI_WITHOUT")}
    return {**kept, **threads, **offline, **caches, **ours, **peer.variables}


def write_config(task: Task, peer: Peer) -> Path:
    """Writes the config of a run of this repository, and its rows, ordered so that its steps are the same."""
    path = place_rows(task.work.rows, task.folder / "rows.jsonl", _DATA_SEED)
    only_answers = peer.options.get("answers")
    targets = {"train_target": "ALL_ASSISTANT_TURNS"} if only_answers else {"collator_name": "text_with_padding"}
    config = {
        "model": {
            "model_name": str(task.work.model),
            "model_max_length": MAX_LENGTH,
            "torch_dtype_str": "float32",
        },
        "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(path)}], **targets}},
        "training": {
            "trainer_type": peer.options.get("trainer_type", "OUMI"),
            "output_dir": str(task.folder / "out"),
            "per_device_train_batch_size": BATCH,
            "max_steps": task.num_steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "data_seed": _DATA_SEED,
            "save_steps": 0,
            "save_final_model": False,
            "enable_tensorboard": False,
        },
    }
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


def _read_result(folder: Path, started: float) -> Steps:
    result = json.loads((folder / "result.json").read_text())
    walls, cpus = [started], [0.0]
    for wall, cpu, _faults in result["marks"]:
        walls.append(wall)
        cpus.append(cpu)
    return Steps(
        walls_s=tuple(b - a for a, b in pairwise(walls)),
        cpus_s=tuple(b - a for a, b in pairwise(cpus)),
        losses=tuple(result["losses"]),
        peak_bytes=result["peak_bytes"],
        first_step_s=walls[1] - started,
        versions=result["versions"],
    )
