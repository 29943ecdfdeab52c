# SPDX-License-Identifier: Apache-2.0
"""A run of an arm in a process of its own, and the losses of its checkpoints, by the same code for all arms."""

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
"""Matrices that GPT-2 in transformers stores transposed."""


@dataclass(frozen=True)
class Trained:
    """A run, and the loss on the held-out text after so many steps."""

    run: Run
    losses: dict[int, float]
    seed: int


def train(task: Task, arm: Peer, seed: int, held_out: str) -> Trained:
    """Trains once, and measures the checkpoints. Raises PeerError if it fails."""
    run = run_arm(task, arm, seed)
    return Trained(run, saved_losses(task, held_out), seed)


def run_arm(task: Task, arm: Peer, seed: int) -> Run:
    """Trains the task's steps with an arm, and returns their measurements."""
    shutil.rmtree(task.run_folder, ignore_errors=True)
    task.run_folder.mkdir(parents=True)
    job, log = write_job(task, arm, seed), task.run_folder / "log.txt"
    metrics = task.run_folder / "out" / "metrics.jsonl"
    command = ["-m", "oumi", "train", "-c", str(job)] if arm.driver is None else [str(DRIVERS / arm.driver), str(job)]
    with log.open("w") as file:
        # Read just before and after the run, so that their difference is the work of all programs meanwhile.
        busy, started = busy_s(), time.monotonic()
        child = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=_variables(task, arm))
        first_step_ended = wait_for(metrics, child) if arm.driver is None else 0.0
        _, status, used = os.wait4(child.pid, 0)  # unlike Popen.wait, it returns the CPU time of this child alone
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
    """Returns the steps of a run of this repository."""
    from importlib.metadata import version

    lines = [record for record in map(json.loads, path.read_text().splitlines()) if "step_time_s" in record]
    return Steps(
        walls_s=tuple(record["step_time_s"] for record in lines),
        cpus_s=tuple(record["cpu_time_s"] for record in lines),
        losses=tuple(record["loss"] for record in lines),
        peak_bytes=max(record["peak_memory_bytes"] for record in lines),
        first_step_s=first_step_s,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def read_result(path: Path, started: float) -> Steps:
    """Returns the steps of a driver."""
    result = json.loads(path.read_text())
    result["first_step_s"] = result.pop("first_step_ended") - started
    return Steps(**{key: tuple(value) if isinstance(value, list) else value for key, value in result.items()})


def saved_losses(task: Task, held_out: str) -> dict[int, float]:
    """Returns the loss of each checkpoint of the last run, by its step."""
    import torch

    torch.set_num_threads(task.num_threads)
    places = {letter: i for i, letter in enumerate(task.letters)}
    tokens = torch.tensor([places[letter] for letter in held_out])
    losses = {}
    for path in (task.run_folder / "out").glob("checkpoint-*"):
        model = load_model(path, len(task.letters), task.recipe)
        losses[int(path.stem.rpartition("-")[2])] = held_out_loss(model, tokens, task.recipe.block)
    return dict(sorted(losses.items()))


def load_model(path: Path, num_tokens: int, recipe: Recipe) -> Any:
    """Returns transformers' GPT-2 with the weights of a checkpoint of any arm."""
    import torch
    from safetensors.torch import load_file
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2_config(num_tokens, recipe)).eval()
    own = dict(model.transformer.named_parameters())
    if path.is_dir():
        theirs = load_file(path / "model.safetensors")
        theirs = {name.removeprefix("transformer."): weight for name, weight in theirs.items()}
        theirs.pop("lm_head.weight", None)  # tied to the embedding
    else:
        saved = torch.load(path, weights_only=True)["model"]
        theirs = {name: weight.t() if name.endswith(_TRANSPOSED) else weight for name, weight in saved.items()}
    with torch.no_grad():
        for name, weight in own.items():
            if name not in theirs and name.endswith(".bias"):  # nanoGPT has none
                weight.zero_()
                continue
            values = theirs.pop(name)
            weight[: len(values)] = values  # a window has one position less than a row
    assert not theirs, f"weights without a place: {', '.join(theirs)}"
    return model


def held_out_loss(model: Any, tokens: Any, block: int) -> float:
    """Returns the mean loss over the text in blocks, without its first token and an incomplete last block."""
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
