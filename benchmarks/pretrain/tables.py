# SPDX-License-Identifier: Apache-2.0
"""Computes from runs the time to a loss, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import Peer
from benchmarks.pretrain.recipe import Recipe
from benchmarks.pretrain.runs import Trained
from benchmarks.sft.measure import Steps

NUM_SKIPPED_STEPS = 5
_COLUMNS = (
    "time x", "CPU x", "s to loss", "with start-up", "CPU s to loss", "steps to loss", "loss at the end", "tokens/s",
    "CPU ms/step", "start-up s", "whole run s", "whole run CPU s", "peak MiB", "runs",
)  # fmt: skip


@dataclass
class Outcome:
    """The runs of an arm."""

    arm: Peer
    trained: list[Trained] = field(default_factory=list)
    num_discarded: int = 0
    """Runs during which other programs used the machine."""
    failure: str = ""


def target_loss(published: float, outcomes: Sequence[Outcome]) -> float:
    """Returns a loss that every run reached: the published one, or the lowest of the worst run."""
    lowest = [min(run.losses.values()) for outcome in outcomes for run in outcome.trained]
    return max([published, *lowest])


def steps_to(losses: Mapping[int, float], target: float) -> float:
    """Returns after how many steps a loss was reached, on a straight line between two measurements."""
    before: tuple[int, float] | None = None
    for step, loss in losses.items():
        if loss <= target:
            if before is None or before[1] == loss:  # no line to interpolate on
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (step, loss)
    raise AssertionError("a target is a loss that every run reached")


def spent(values: Sequence[float], num_steps: float, first: float) -> float:
    """Returns the sum over a number of steps, including a part of the last step.

    Args:
        values: Of each step.
        num_steps: May end within a step.
        first: Counts for the first step instead of its own value.
    """
    num_full = int(num_steps)
    rest = values[num_full] * (num_steps - num_full) if num_full < len(values) else 0.0
    return first + sum(values[1:num_full]) + rest


def measures(trained: Trained, target: float, recipe: Recipe) -> dict[str, float]:
    """Returns the measurements of a run."""
    steps = trained.run.steps
    num_steps = steps_to(trained.losses, target)
    # The first steps warm up and start-up is timed on its own, so an average step stands for the first one.
    wall, cpu = (statistics.fmean(values[NUM_SKIPPED_STEPS:]) for values in (steps.walls_s, steps.cpus_s))
    return {
        "s_to_loss": spent(steps.walls_s, num_steps, wall),
        "s_to_loss_with_start": spent(steps.walls_s, num_steps, steps.first_step_s),
        "cpu_s_to_loss": spent(steps.cpus_s, num_steps, cpu),
        "steps_to_loss": num_steps,
        "last_loss": list(trained.losses.values())[-1],
        "tokens_per_second": recipe.targets_per_step / wall,
        "cpu_ms_per_step": 1e3 * cpu,
        "start_s": steps.first_step_s - wall,
        "wall_s": trained.run.wall_s,
        "cpu_s": trained.run.cpu_s,
        "peak_mib": steps.peak_bytes / 2**20,
    }


def summary(outcomes: Mapping[str, Outcome], target: float, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Returns the medians of each arm, and their ratios to those of the first arm."""
    rows: dict[str, dict[str, Any]] = {}
    base: dict[str, Any] | None = None
    for name, outcome in outcomes.items():
        runs = [measures(run, target, recipe) for run in outcome.trained]
        row: dict[str, Any] = {
            "title": outcome.arm.title,
            "note": outcome.arm.note,
            "num_discarded": outcome.num_discarded,
        }
        row |= {"num_runs": len(runs), "failure": outcome.failure}
        row |= {key: statistics.median(run[key] for run in runs) for key in (runs[0] if runs else ())}
        base = base or row  # the first row
        if runs and base["num_runs"]:
            row["time_ratio"] = row["s_to_loss"] / base["s_to_loss"]
            row["cpu_ratio"] = row["cpu_s_to_loss"] / base["cpu_s_to_loss"]
        rows[name] = row
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the rows as a table in Markdown, with their notes below."""
    lines = ["| | " + " | ".join(_COLUMNS) + " |", "|---" + "|---:" * len(_COLUMNS) + "|"]
    notes = list(dict.fromkeys(row["note"] for row in rows.values() if row["note"]))
    for row in rows.values():
        mark = f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
        lines.append(f"| {row['title']}{mark} | " + " | ".join(_cells(row)) + " |")
    return "\n".join([*lines, "", *(f"[{i}] {note}." for i, note in enumerate(notes, start=1))]).rstrip()


def curve(outcomes: Mapping[str, Outcome]) -> str:
    """Returns the median losses during training as a table in Markdown."""
    trained = {name: outcome.trained for name, outcome in outcomes.items() if outcome.trained}
    steps = list(next(iter(trained.values()))[0].losses) if trained else []
    lines = [
        "| steps | " + " | ".join(outcomes[name].arm.title for name in trained) + " |",
        "|---:" * (len(trained) + 1) + "|",
    ]
    for step in steps:
        losses = (statistics.median(run.losses[step] for run in runs) for runs in trained.values())
        lines.append(f"| {step} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
    return "\n".join(lines)


def check_steps(steps: Steps, losses: Mapping[int, float], recipe: Recipe) -> str:
    """Returns the problem of a run, empty if it took all steps and saved the last one."""
    if len(steps.walls_s) != recipe.num_steps:
        return f"took {len(steps.walls_s)} steps"
    return "" if recipe.num_steps in losses else "has no checkpoint of the last step"


def _cells(row: Mapping[str, Any]) -> list[str]:
    if not row["num_runs"]:
        failure = row["failure"] or f"no quiet run in {row['num_discarded']}"
        return [failure, *[""] * (len(_COLUMNS) - 1)]
    ratios = (row.get(name) for name in ("time_ratio", "cpu_ratio"))
    return [
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        *(f"{row[name]:.1f}" for name in ("s_to_loss", "s_to_loss_with_start", "cpu_s_to_loss")),
        f"{row['steps_to_loss']:,.0f}",
        f"{row['last_loss']:.4f}",
        f"{row['tokens_per_second']:,.0f}",
        *(f"{row[name]:.1f}" for name in ("cpu_ms_per_step", "start_s", "wall_s", "cpu_s")),
        f"{row['peak_mib']:,.0f}",
        f"{row['num_runs']}" + (f", {row['num_discarded']} discarded" if row["num_discarded"] else ""),
    ]
