# SPDX-License-Identifier: Apache-2.0
"""Computes medians of runs and the table; a peer with other losses is rejected."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import Peer
from benchmarks.sft.measure import Run

NUM_SKIPPED_STEPS = 5
MAX_DIFFERENCE = 1e-3
_HEAD = (
    "| | steps/s | real tokens/s | CPU ms/token | time x | CPU x | memory x | peak MiB | first step s | whole run s "
    "| losses differ by | runs |"
)


@dataclass(frozen=True)
class Median:
    """The medians of a peer's runs, of each measure on its own."""

    step_s: float
    step_cpu_s: float
    tokens_per_second: float
    cpu_ms_per_token: float
    peak_mib: float
    first_step_s: float
    wall_s: float


@dataclass
class Outcome:
    """The runs of a peer."""

    peer: Peer
    runs: list[Run] = field(default_factory=list)
    num_discarded: int = 0
    """Runs during which other programs used the machine."""
    failure: str = ""


def median(runs: Sequence[Run], num_tokens: Sequence[int]) -> Median:
    """Returns the medians over runs, of their steps without the first ones.

    Args:
        runs: Of one peer, at least one.
        num_tokens: Of each step, without padding.
    """
    # The first steps warm up allocators and kernels.
    tokens = sum(num_tokens[NUM_SKIPPED_STEPS:])
    num_steps = len(num_tokens) - NUM_SKIPPED_STEPS
    wall = statistics.median(sum(run.steps.walls_s[NUM_SKIPPED_STEPS:]) for run in runs)
    cpu = statistics.median(sum(run.steps.cpus_s[NUM_SKIPPED_STEPS:]) for run in runs)
    return Median(
        step_s=wall / num_steps,
        step_cpu_s=cpu / num_steps,
        tokens_per_second=tokens / wall,
        cpu_ms_per_token=1e3 * cpu / tokens,
        peak_mib=statistics.median(run.steps.peak_bytes for run in runs) / 2**20,
        first_step_s=statistics.median(run.steps.first_step_s for run in runs),
        wall_s=statistics.median(run.wall_s for run in runs),
    )


def loss_difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Returns the largest relative difference from the expected loss of a step; infinity if a loss is not finite."""
    assert len(losses) == len(expected), "every step has a loss"
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def corrected(losses: Sequence[float], num_tokens: Sequence[int], batch: int) -> list[float]:
    """Returns losses that were divided by all labels, as if divided by targets."""
    # The first token of each of the `batch` rows is a label, but nothing predicts it.
    return [loss * tokens / (tokens - batch) for loss, tokens in zip(losses, num_tokens, strict=True)]


def comparable_losses(peer: Peer, run: Run, num_tokens: Sequence[int], batch: int) -> Sequence[float]:
    """Returns the losses of a run in the reference's terms."""
    return corrected(run.steps.losses, num_tokens, batch) if peer.divides_by_labels else run.steps.losses


def summary(
    outcomes: Mapping[str, Outcome], expected: Mapping[str, Sequence[float]], work: Sequence[int], batch: int
) -> dict[str, dict[str, Any]]:
    """Returns the medians of each peer, their ratios to its base row, and the difference of its losses.

    Args:
        outcomes: By the peer's name.
        expected: The losses of each reference.
        work: Tokens of each step, without padding.
        batch: Rows of a step.
    """
    medians = {name: median(outcome.runs, work) for name, outcome in outcomes.items() if outcome.runs}
    rows: dict[str, dict[str, Any]] = {}
    for name, outcome in outcomes.items():
        row: dict[str, Any] = {
            "title": outcome.peer.title,
            "note": outcome.peer.note,
            "base": outcome.peer.base,
            "num_discarded": outcome.num_discarded,
        }
        row["num_runs"], row["failure"] = len(outcome.runs), outcome.failure
        if outcome.runs:
            target = expected[outcome.peer.reference]
            off = max(
                loss_difference(comparable_losses(outcome.peer, run, work, batch), target) for run in outcome.runs
            )
            row |= {"losses_differ_by": off, "is_rejected": off > MAX_DIFFERENCE, **vars(medians[name])}
            row |= _relation(medians[name], medians.get(outcome.peer.base))
        rows[name] = row
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the rows of `summary` as a table in Markdown, with their notes below."""
    return table_with(_HEAD, cells, rows)


def table_with(
    head: str, cells: Callable[[Mapping[str, Any]], list[str]], rows: Mapping[str, Mapping[str, Any]]
) -> str:
    """Returns rows as a table in Markdown, with their notes below.

    Args:
        head: The first line of the table.
        cells: Returns what follows the title of a row that has measures.
        rows: Those of `summary`, which may have more values.
    """
    num_cells = head.count("|") - 2
    lines = [head, "|---" + "|---:" * num_cells + "|"]
    notes = list(dict.fromkeys(row["note"] for row in rows.values() if row["note"]))
    for row in rows.values():
        mark = f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
        problem = _problem(row)
        values = [problem, *[""] * (num_cells - 1)] if problem else cells(row)
        lines.append(f"| {row['title']}{mark} | " + " | ".join(values) + " |")
    lines += ["", *(f"[{i}] {note}." for i, note in enumerate(notes, start=1))]
    return "\n".join(lines).rstrip()


def _relation(own: Median, base: Median | None) -> dict[str, float | None]:
    if base is None:
        return dict.fromkeys(("time_ratio", "cpu_ratio", "memory_ratio"))
    return {
        "time_ratio": own.step_s / base.step_s,
        "cpu_ratio": own.step_cpu_s / base.step_cpu_s,
        "memory_ratio": own.peak_mib / base.peak_mib,
    }


def ratio(value: float | None) -> str:
    """Returns a ratio to the base row as text."""
    return "-" if value is None else f"{value:.2f}"


def num_runs(row: Mapping[str, Any]) -> str:
    """Returns how many runs count and how many were discarded as text."""
    return f"{row['num_runs']}" + (f", {row['num_discarded']} discarded" if row["num_discarded"] else "")


def _problem(row: Mapping[str, Any]) -> str:
    """Returns why a row has no measures, empty if it has them."""
    if not row["num_runs"]:
        return row["failure"] or f"no quiet run in {row['num_discarded']}"
    return f"rejected: losses differ by {row['losses_differ_by']:.1e}" if row["is_rejected"] else ""


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a peer, the first one its speed."""
    return [
        f"{1 / row['step_s']:.3f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['cpu_ms_per_token']:.2f}",
        *(ratio(row[name]) for name in ("time_ratio", "cpu_ratio", "memory_ratio")),
        f"{row['peak_mib']:,.0f}",
        f"{row['first_step_s']:.1f}",
        f"{row['wall_s']:.1f}",
        f"{row['losses_differ_by']:.1e}",
        num_runs(row),
    ]
