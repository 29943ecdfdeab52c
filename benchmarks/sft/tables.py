# SPDX-License-Identifier: Apache-2.0
"""From runs to medians, from medians to a table; a peer that did other work is told, not timed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
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
    """What the runs of one peer took in the middle: of each measure its own median."""

    step_s: float
    step_cpu_s: float
    tokens_per_second: float
    cpu_ms_per_token: float
    peak_mib: float
    first_step_s: float
    wall_s: float


@dataclass
class Outcome:
    """What came of one peer."""

    peer: Peer
    runs: list[Run] = field(default_factory=list)
    num_discarded: int = 0
    """Runs beside which the machine was busy with other things."""
    failure: str = ""


def median(runs: Sequence[Run], num_tokens: Sequence[int]) -> Median:
    """Returns the medians over runs, of their steps without the first ones.

    Args:
        runs: Of one peer, at least one.
        num_tokens: Of each step, without padding.
    """
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


def loss_difference(losses: Sequence[float], wanted: Sequence[float]) -> float:
    """Returns the largest difference of a step's loss from the one wanted, in parts of it; nan is infinitely off."""
    assert len(losses) == len(wanted), "every step has a loss"
    found = [abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True)]
    return max(found) if all(math.isfinite(one) for one in found) else math.inf


def corrected(losses: Sequence[float], num_tokens: Sequence[int], batch: int) -> list[float]:
    """Returns losses that were divided by all labels, as if divided by targets: the first token of a row is none."""
    return [loss * tokens / (tokens - batch) for loss, tokens in zip(losses, num_tokens, strict=True)]


def comparable_losses(peer: Peer, run: Run, num_tokens: Sequence[int], batch: int) -> Sequence[float]:
    """Returns the losses of a run in the reference's terms."""
    return corrected(run.steps.losses, num_tokens, batch) if peer.divides_by_labels else run.steps.losses


def summary(
    outcomes: Mapping[str, Outcome], wanted: Mapping[str, Sequence[float]], work: Sequence[int], batch: int
) -> dict[str, dict[str, Any]]:
    """Returns for each peer its medians, its relation to its base row, and how far its losses are off.

    Args:
        outcomes: By the peer's name.
        wanted: The losses of each reference.
        work: Tokens of each step, without padding.
        batch: Rows of a step.
    """
    medians = {name: median(one.runs, work) for name, one in outcomes.items() if one.runs}
    found: dict[str, dict[str, Any]] = {}
    for name, one in outcomes.items():
        row: dict[str, Any] = {"title": one.peer.title, "note": one.peer.note, "num_discarded": one.num_discarded}
        row["num_runs"], row["failure"] = len(one.runs), one.failure
        if one.runs:
            target = wanted[one.peer.reference]
            off = max(loss_difference(comparable_losses(one.peer, run, work, batch), target) for run in one.runs)
            row |= {"losses_differ_by": off, "is_rejected": off > MAX_DIFFERENCE, **vars(medians[name])}
            row |= _relation(medians[name], medians.get(one.peer.base))
        found[name] = row
    return found


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the rows as a table in Markdown, with their notes below."""
    lines = [_HEAD, "|---" + "|---:" * (_HEAD.count("|") - 2) + "|"]
    notes = list(dict.fromkeys(row["note"] for row in rows.values() if row["note"]))
    for row in rows.values():
        mark = f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
        lines.append(f"| {row['title']}{mark} | " + " | ".join(_cells(row)) + " |")
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


def _cells(row: Mapping[str, Any]) -> list[str]:
    blanks = [""] * 10
    if not row["num_runs"]:
        return [row["failure"] or f"no quiet run in {row['num_discarded']}", *blanks]
    if row["is_rejected"]:
        return [f"rejected: losses differ by {row['losses_differ_by']:.1e}", *blanks]
    ratios = [row[name] for name in ("time_ratio", "cpu_ratio", "memory_ratio")]
    return [
        f"{1 / row['step_s']:.3f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['cpu_ms_per_token']:.2f}",
        *("-" if one is None else f"{one:.2f}" for one in ratios),
        f"{row['peak_mib']:,.0f}",
        f"{row['first_step_s']:.1f}",
        f"{row['wall_s']:.1f}",
        f"{row['losses_differ_by']:.1e}",
        f"{row['num_runs']}" + (f", {row['num_discarded']} discarded" if row["num_discarded"] else ""),
    ]
