# SPDX-License-Identifier: Apache-2.0
"""A run of an arm on one GPU or several, in processes of its own, and its measurements."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import DATA_SEED, LENGTH, Cell, oumi_config, trl_job
from benchmarks.peers import Environment
from benchmarks.sft.environments import ready_python
from benchmarks.sft.measure import DRIVERS, SOURCE, launcher
from benchmarks.sft.workload import place_rows

NUM_SKIPPED_STEPS = 5
TRL = Environment(
    ("transformers==5.23.0", "trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0", "peft", "liger-kernel", "kernels"),
    reported=("torch", "transformers", "trl", "liger-kernel"),
)
_ERROR = re.compile(r"(?:^|[\s:.])(?!ChildFailedError)(?:[A-Z]\w*)?Error: .+")
"""The line of an error; that of torch's launcher says nothing of its reason."""


@dataclass(frozen=True)
class Arm:
    """A row of the table."""

    title: str
    is_ours: bool
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """Measurements of a run."""

    walls_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: int
    """Of the first rank."""
    rank_peaks_bytes: tuple[int, ...] = ()
    """Of each rank, if there are several."""
    planned_bytes: int | None = None
    """The peak that the plan of a run of this repository predicted, None if it did not."""


def add_options(parser: argparse.ArgumentParser, cells: Mapping[str, Cell], arms: Mapping[str, Arm]) -> None:
    """Adds the options of all comparisons on GPUs."""
    parser.add_argument("--cells", type=_names, default=list(cells), help=f"of {', '.join(cells)}")
    parser.add_argument("--arms", type=_names, default=list(arms), help=f"of {', '.join(arms)}")
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


def checked(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None,
    cells: Mapping[str, Cell],
    arms: Mapping[str, Arm],
) -> argparse.Namespace:
    """Returns the options of the command line; ends the program if they are wrong."""
    options = parser.parse_args(words)
    options.cache = options.cache.expanduser().absolute()
    for names, table_of in ((options.cells, cells), (options.arms, arms)):
        for name in names:
            if name not in table_of:
                parser.error(f"unknown name '{name}', expected one of {', '.join(table_of)}")
    if options.steps <= NUM_SKIPPED_STEPS:
        parser.error(f"--steps must be more than {NUM_SKIPPED_STEPS}")
    return options


def run(
    cell: Cell, arm: Arm, model: Path, rows: Path, arguments: argparse.Namespace, num_ranks: int = 1
) -> Steps | str:
    """Trains once in processes of its own, and returns its measurements, or why it failed."""
    folder = arguments.cache / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = _command(cell, arm, model, rows, arguments, num_ranks)
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **({"PYTHONPATH": path} if arm.is_ours else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        log = arguments.cache / f"failed-{re.sub(r'[^a-z0-9]+', '-', arm.title.lower())}.log"
        log.write_text(done.stdout + done.stderr)
        return f"failed: {reason(done.stderr)} ({log})"
    steps = read_metrics(folder / "out") if arm.is_ours else read_result(folder / "result.json")
    if num_ranks == 1:
        return steps
    others = (json.loads((folder / f"result.{rank}.json").read_text()) for rank in range(1, num_ranks))
    return replace(steps, rank_peaks_bytes=(steps.peak_bytes, *(result["peak_bytes"] for result in others)))


def _command(cell: Cell, arm: Arm, model: Path, rows: Path, arguments: argparse.Namespace, num_ranks: int) -> list[str]:
    """Returns the command of a run, after writing its files."""
    folder = arguments.cache / "run"
    job = folder / "job.json"
    if not arm.is_ours:
        options = {**arm.options, "attention": arguments.attention}
        job.write_text(json.dumps(trl_job(cell, model, rows, folder, arguments.steps, options)))
        python = arguments.trl_python or ready_python(arguments.cache / "trl", TRL)
        return [str(python), *launcher(num_ranks), str(DRIVERS / "trl_gpu.py"), str(job)]
    own = place_rows(rows, folder / "rows.jsonl", DATA_SEED)
    config = folder / "config.json"
    config.write_text(json.dumps(oumi_config(cell, model, own, folder / "out", arguments.steps, arm.options)))
    if num_ranks == 1:
        return [sys.executable, "-m", "oumi", "train", "-c", str(config)]
    files = {"config": config, "out": folder / "out", "result": folder / "result.json"}
    job.write_text(json.dumps({**{name: str(path) for name, path in files.items()}, "packages": []}))
    return [sys.executable, *launcher(num_ranks), str(DRIVERS / "oumi_ranks.py"), str(job)]


def reason(output: str) -> str:
    """Returns the line of the last error in what a run printed, its last lines if there is none."""
    lines = output.splitlines()
    errors = [line.strip() for line in lines if _ERROR.search(line)]
    return errors[-1] if errors else "\n".join(lines[-3:])


def read_metrics(out: Path) -> Steps:
    """Returns the steps of a run of this repository by its folder; a step ends when its update was started."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    walls, losses = (tuple(record[key] for record in lines) for key in ("step_time_s", "loss"))
    memory = json.loads((out / "plan.json").read_text()).get("memory")
    peak = max(record["peak_memory_bytes"] for record in lines)
    return Steps(walls, losses, peak, planned_bytes=memory and memory["total"])


def read_result(path: Path) -> Steps:
    """Returns the steps of a driver; the time of its first step is unknown and counts as 0."""
    result = json.loads(path.read_text())
    walls = (0.0, *(b - a for a, b in pairwise(result["marks"])))
    return Steps(walls, tuple(result["losses"]), result["peak_bytes"])


def speed(cell: Cell, runs: list[Steps] | str | None, num_ranks: int = 1) -> float | None:
    """Returns the tokens per second of the median run on all GPUs, None if there is none."""
    if not runs or isinstance(runs, str):
        return None
    step_s = statistics.median(statistics.fmean(run.walls_s[NUM_SKIPPED_STEPS:]) for run in runs)
    return num_ranks * cell.rows * LENGTH / step_s


def run_line(cell: Cell, steps: Steps | str, num_ranks: int = 1) -> str:
    """Returns a run as one line, printed while the table is not complete."""
    if isinstance(steps, str):
        return steps
    return f"{speed(cell, [steps], num_ranks):,.0f} tokens/s, {steps.peak_bytes / 2**30:.1f} GiB"


def _names(text: str) -> list[str]:
    return text.split(",")
