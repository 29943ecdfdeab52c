# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu`: tokens per second, share of the GPU's peak, and memory of Oumi and TRL on a GPU.

Needs an NVIDIA GPU with bfloat16 (Ampere or newer), and for the first run a package index: TRL gets an environment of
its own. Weights are random, and are written to the cache once (2.5 GB and 16 GB). Each run is a process
of its own; arms take turns, in reverse every other round; the table shows medians of steps after the first ones.
torchtitan is not compared yet: its data and its configs are its own, and need a driver.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import (
    CELLS,
    DATA_SEED,
    LENGTH,
    SHAPES,
    Cell,
    flops_per_token,
    oumi_config,
    trl_job,
    write_model,
    write_rows,
)
from benchmarks.peers import Environment
from benchmarks.sft.environments import ready_python
from benchmarks.sft.measure import DRIVERS, SOURCE
from benchmarks.sft.tables import MAX_DIFFERENCE, loss_difference
from benchmarks.sft.workload import place_rows
from oumi.core.system.peaks import nominal_flops

NUM_SKIPPED_STEPS = 5
NEEDS = "needs an NVIDIA GPU with bfloat16 (Ampere or newer) and a torch with CUDA; there is none"
TRL = Environment(
    ("transformers==5.23.0", "trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0", "peft", "liger-kernel", "kernels"),
    reported=("torch", "transformers", "trl", "liger-kernel"),
)


@dataclass(frozen=True)
class Arm:
    """A row of the table."""

    title: str
    is_ours: bool
    options: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "trl": Arm("TRL 1.16, Liger", False, {"use_liger_kernel": True}),
    "trl_compile": Arm("the same, compiled", False, {"use_liger_kernel": True, "torch_compile": True}),
    "oumi": Arm("Oumi (this repository), OUMI", True),
    "oumi_liger": Arm("the same, model.enable_liger_kernel", True, {"liger": True}),
    "oumi_compile": Arm("the same, training.compile", True, {"compile": True}),
    "oumi_auto": Arm("the same, recompute_num_layers auto", True, {"compile": True, "recompute": "auto"}),
    "oumi_fp8": Arm("compiled, fp8_recipe rowwise", True, {"compile": True, "fp8_recipe": "rowwise"}),
}


@dataclass(frozen=True)
class Steps:
    """Measurements of a run."""

    walls_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int


def main() -> None:
    """Runs the cells, and prints a table of each."""
    arguments = parse_options()
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_bf16_supported():
        print(f"benchmarks.gpu {NEEDS}")
        return
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")
    for name in arguments.cells:
        cell = CELLS[name]
        if properties.total_memory < cell.needs_gib * 2**30:
            print(f"\n{cell.title}: needs about {cell.needs_gib} GiB")
            continue
        print(f"\n{cell.title}, {cell.rows} rows of {LENGTH} tokens a step")
        print(table(cell, run_cell(cell, arguments), nominal_flops(properties.name)))


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=_names, default=list(CELLS), help=f"of {', '.join(CELLS)}")
    parser.add_argument("--arms", type=_names, default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument(
        "--attention",
        default="flash_attention_2",
        help="of TRL, such as kernels-community/flash-attn3; with sdpa, rows are not packed",
    )
    parser.add_argument(
        "--trl-python", type=Path, help="of an environment that has TRL and Liger, instead of a new environment"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/oumi/benchmarks/gpu"))
    options = parser.parse_args(words)
    options.cache = options.cache.expanduser().absolute()
    for names, table_of in ((options.cells, CELLS), (options.arms, ARMS)):
        for name in names:
            if name not in table_of:
                parser.error(f"unknown name '{name}', expected one of {', '.join(table_of)}")
    if options.steps <= NUM_SKIPPED_STEPS:
        parser.error(f"--steps must be more than {NUM_SKIPPED_STEPS}")
    return options


def run_cell(cell: Cell, arguments: argparse.Namespace) -> dict[str, list[Steps] | str]:
    """Runs the arms in turns, and returns the runs of each, or the reason of its failure."""
    arguments.cache.mkdir(parents=True, exist_ok=True)
    model = write_model(arguments.cache / cell.shape, SHAPES[cell.shape])
    rows = write_rows(arguments.cache / "rows.jsonl", arguments.steps * cell.rows)
    names = [name for name in arguments.arms if cell.recomputes or "recompute" not in ARMS[name].options]
    results: dict[str, list[Steps] | str] = {name: [] for name in names}
    for turn in range(arguments.repeats):
        # Alternating, so that a GPU that heats up favors no arm.
        for name in names if turn % 2 == 0 else reversed(names):
            runs = results[name]
            if isinstance(runs, list):
                steps = run(cell, ARMS[name], model, rows, arguments)
                results[name] = steps if isinstance(steps, str) else [*runs, steps]
                print(f"{ARMS[name].title}: {run_line(cell, steps)}", file=sys.stderr, flush=True)
    return results


def run(cell: Cell, arm: Arm, model: Path, rows: Path, arguments: argparse.Namespace) -> Steps | str:
    """Trains once in a process of its own, and returns its measurements, or the end of its error output."""
    folder = arguments.cache / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job = folder / "job.json"
    if arm.is_ours:
        own = place_rows(rows, folder / "rows.jsonl", DATA_SEED)
        config = oumi_config(cell, model, own, folder / "out", arguments.steps, arm.options)
        command = [sys.executable, "-m", "oumi", "train", "-c", str(job)]
    else:
        options = {**arm.options, "attention": arguments.attention}
        config = trl_job(cell, model, rows, folder, arguments.steps, options)
        python = arguments.trl_python or ready_python(arguments.cache / "trl", TRL)
        command = [str(python), str(DRIVERS / "trl_gpu.py"), str(job)]
    job.write_text(json.dumps(config))
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **({"PYTHONPATH": path} if arm.is_ours else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return "failed: " + "\n".join(done.stderr.splitlines()[-3:])
    return read_metrics(folder / "out" / "metrics.jsonl") if arm.is_ours else read_result(folder / "result.json")


def run_line(cell: Cell, steps: Steps | str) -> str:
    """Returns a run as one line, printed while the table is not complete."""
    if isinstance(steps, str):
        return steps
    return f"{_speed(cell, [steps]):,.0f} tokens/s, {steps.peak_bytes / 2**30:.1f} GiB"


def read_metrics(path: Path) -> Steps:
    """Returns the steps of a run of this repository; a step ends when its update was started."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    walls, losses = (tuple(record[key] for record in lines) for key in ("step_time_s", "loss"))
    return Steps(walls, losses, max(record["peak_memory_bytes"] for record in lines))


def read_result(path: Path) -> Steps:
    """Returns the steps of a driver; the time of its first step is unknown and counts as 0."""
    result = json.loads(path.read_text())
    walls = (0.0, *(b - a for a, b in pairwise(result["marks"])))
    return Steps(walls, tuple(result["losses"]), result["peak_bytes"])


def table(cell: Cell, results: dict[str, list[Steps] | str], peak_flops: float | None) -> str:
    """Returns a line for each arm, relative to TRL if it ran; arms with other losses are rejected."""
    lines = [f"{'':<42}{'tokens/s':>10}{'MFU':>8}{'peak GiB':>10}{'x TRL':>8}{'losses off':>12}"]
    first = results.get("trl")
    base = _speed(cell, first)
    expected = first[0].losses if first and not isinstance(first, str) else None
    for name, runs in results.items():
        speed = _speed(cell, runs)
        if speed is None or isinstance(runs, str):
            lines.append(f"{ARMS[name].title:<42}  {runs or 'no run'}")
            continue
        mfu = f"{speed * flops_per_token(cell) / peak_flops:.1%}" if peak_flops else "-"
        peak = statistics.median(run.peak_bytes for run in runs) / 2**30
        ratio = f"{speed / base:.2f}" if base else "-"
        off = max(loss_difference(run.losses, expected) for run in runs) if expected is not None else None
        if off is not None and off > MAX_DIFFERENCE:
            lines.append(f"{ARMS[name].title:<42}  rejected: losses differ by {off:.1e}")
            continue
        difference = "-" if off is None else f"{off:.1e}"
        lines.append(f"{ARMS[name].title:<42}{speed:>10,.0f}{mfu:>8}{peak:>10.1f}{ratio:>8}{difference:>12}")
    return "\n".join(lines)


def _speed(cell: Cell, runs: list[Steps] | str | None) -> float | None:
    """Returns the tokens per second of the median run, None if there is none."""
    if not runs or isinstance(runs, str):
        return None
    step_s = statistics.median(statistics.fmean(run.walls_s[NUM_SKIPPED_STEPS:]) for run in runs)
    return cell.rows * LENGTH / step_s


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
