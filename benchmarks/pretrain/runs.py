# SPDX-License-Identifier: Apache-2.0
"""One run of one arm in a process of its own, and the losses of what it saved, by the same code for all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer
from benchmarks.pretrain.recipe import Recipe, Task, gpt2_config, write_job
from benchmarks.sft.measure import DRIVERS, SOURCE, PeerError, Run, Steps, busy_s, contention, wait_for

_BLOCKS_AT_ONCE = 64
_TRANSPOSED = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
"""Matrices that GPT-2 in transformers holds the other way round."""


@dataclass(frozen=True)
class Trained:
    """A run, and the loss on the held-out text after so many steps."""

    run: Run
    losses: dict[int, float]
    seed: int


def train(task: Task, arm: Peer, seed: int, held_out: str) -> Trained:
    """Trains once, and measures what was saved on the way. Raises PeerError if it fails."""
    run = run_arm(task, arm, seed)
    return Trained(run, saved_losses(task, held_out), seed)


def run_arm(task: Task, arm: Peer, seed: int) -> Run:
    """Trains the task's steps with an arm, and returns what they took."""
    shutil.rmtree(task.run_folder, ignore_errors=True)
    task.run_folder.mkdir(parents=True)
    job, log = write_job(task, arm, seed), task.run_folder / "log.txt"
    metrics = task.run_folder / "out" / "metrics.jsonl"
    command = ["-m", "oumi", "train", "-c", str(job)] if arm.driver is None else [str(DRIVERS / arm.driver), str(job)]
    with log.open("w") as file:
        busy, started = busy_s(), time.monotonic()
        child = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=_variables(task, arm))
        first_step_ended = wait_for(metrics, child) if arm.driver is None else 0.0
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall, busy = time.monotonic() - started, busy_s() - busy
    if child.returncode:
        end = log.read_text(errors="replace").splitlines()[-15:]
        raise PeerError(f"ended with {child.returncode}\n" + "\n".join(end))
    if arm.driver is None:
        steps = read_metrics(metrics, first_step_ended - started)
    else:
        steps = read_result(task.run_folder / "result.json", started)
    cpu = used.ru_utime + used.ru_stime
    return Run(steps, wall, cpu, contention(cpu, busy))


def read_metrics(path: Path, first_step_s: float) -> Steps:
    """Returns what a run of this repository tells of its steps."""
    from importlib.metadata import version

    lines = [one for one in map(json.loads, path.read_text().splitlines()) if "step_time_s" in one]
    return Steps(
        walls_s=tuple(one["step_time_s"] for one in lines),
        cpus_s=tuple(one["cpu_time_s"] for one in lines),
        losses=tuple(one["loss"] for one in lines),
        peak_bytes=max(one["peak_memory_bytes"] for one in lines),
        first_step_s=first_step_s,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def read_result(path: Path, started: float) -> Steps:
    """Returns what a driver tells of its steps."""
    told = json.loads(path.read_text())
    told["first_step_s"] = told.pop("first_step_ended") - started
    return Steps(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})


def saved_losses(task: Task, held_out: str) -> dict[int, float]:
    """Returns the loss of each checkpoint of the last run, by its step."""
    import torch

    torch.set_num_threads(task.num_threads)
    places = {letter: i for i, letter in enumerate(task.letters)}
    tokens = torch.tensor([places[letter] for letter in held_out])
    found = {}
    for path in (task.run_folder / "out").glob("checkpoint-*"):
        model = load_model(path, len(task.letters), task.recipe)
        found[int(path.stem.rpartition("-")[2])] = held_out_loss(model, tokens, task.recipe.block)
    return dict(sorted(found.items()))


def load_model(path: Path, num_tokens: int, recipe: Recipe) -> Any:
    """Returns transformers' GPT-2 with the weights of a checkpoint, whosever it is."""
    import torch
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2_config(num_tokens, recipe)).eval()
    own = dict(model.transformer.named_parameters())
    if path.is_dir():
        theirs = {name.removeprefix("transformer."): one for name, one in load_file(path / "model.safetensors").items()}
        theirs.pop("lm_head.weight", None)
    else:
        kept = torch.load(path, weights_only=True)["model"]
        theirs = {name: one.t() if name.endswith(_TRANSPOSED) else one for name, one in kept.items()}
    with torch.no_grad():
        for name, weight in own.items():
            if name not in theirs and name.endswith(".bias"):
                weight.zero_()
                continue
            given = theirs.pop(name)
            weight[: len(given)] = given  # of positions, a window has one less than a row
    assert not theirs, f"weights without a place: {', '.join(theirs)}"
    return model


def held_out_loss(model: Any, tokens: Any, block: int) -> float:
    """Returns the mean loss over the whole text but its first token and what fills no block: block after block."""
    import torch

    num_blocks = (len(tokens) - 1) // block
    inputs_NT, targets_NT = (tokens[i : i + num_blocks * block].view(num_blocks, block) for i in (0, 1))
    total = 0.0
    with torch.inference_mode():
        for part in zip(inputs_NT.split(_BLOCKS_AT_ONCE), targets_NT.split(_BLOCKS_AT_ONCE), strict=True):
            logits_MV = model(input_ids=part[0]).logits.flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits_MV, part[1].flatten(), reduction="sum").item()
    return total / targets_NT.numel()


def _variables(task: Task, arm: Peer) -> dict[str, str]:
    """Returns the environment: as many threads for all, no network, and caches of the run's own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(task.num_threads))
    caches = {name: str(task.run_folder / "caches") for name in ("HF_HOME", "OUMI_CACHE_DIR")}
    ours = {"PYTHONPATH": str(SOURCE)} if arm.driver is None else {}
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OUMI_WITHOUT")}
    return {**kept, **threads, "HF_HUB_OFFLINE": "1", **caches, **ours, **arm.variables}
