# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu.ranks`: Oumi and TRL on all GPUs of one machine, and how their speed grows with them.

Needs two NVIDIA GPUs with bfloat16 (Ampere or newer), and for the first run a package index: TRL gets an environment of
its own. Each GPU trains as many rows a step as one alone does, so that efficiency is the speed of a GPU among others
by that of one alone. A run of several GPUs is started by torchrun; arms take turns, in reverse every other round; the
table shows medians of steps after the first ones. Arms with as many GPUs must have the same losses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import CELLS, LENGTH, SHAPES, Cell, flops_per_token, write_model, write_rows
from benchmarks.gpu.runs import NUM_SKIPPED_STEPS, Arm, Steps, add_options, checked, run, run_line, speed
from benchmarks.sft.tables import MAX_DIFFERENCE, loss_difference
from benchmarks.sft_cpu import RESULTS, commit
from oumi.core.system.peaks import nominal_flops

NEEDS = "needs two NVIDIA GPUs or more with bfloat16 (Ampere or newer) and a torch with CUDA; there"
_HEAD = "| | GPUs | tokens/s | MFU | efficiency | peak GiB of each rank | planned GiB | losses differ by |"
_LIGER = {"use_liger_kernel": True}
_FULL = {"sharding_strategy": "FULL_SHARD"}
_FSDP2 = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "reshard_after_forward": True, "cpu_ram_efficient_loading": False},
    # With autocast, Accelerate would turn the weights into float32, which no other arm does.
    "bf16": False,
}


@dataclass(frozen=True)
class RanksArm(Arm):
    """A row of the table."""

    base: str | None = None
    """The arm that does the same on one GPU, None for an arm on one GPU."""
    has_whole_model: bool = True
    """Each GPU holds all weights, gradients and optimizer states."""


def _divided(title: str, base: str, **options: Any) -> RanksArm:
    return RanksArm(title, True, options, base, has_whole_model=False)


ARMS = {
    "trl_one": RanksArm("TRL 1.16, Liger", False, _LIGER),
    "trl_ddp": RanksArm("the same, DDP", False, {**_LIGER, "ddp_find_unused_parameters": False}, "trl_one"),
    "trl_fsdp2": RanksArm("the same, FSDP2", False, {**_LIGER, **_FSDP2}, "trl_one", has_whole_model=False),
    "one": RanksArm("Oumi (this repository)", True),
    "one_compile": RanksArm("the same, training.compile", True, {"compile": True}),
    "one_recompute": RanksArm("the same, gradient checkpointing", True, {"recomputes": True}),
    "ddp": RanksArm("DDP", True, {}, "one"),
    "ddp_compile": RanksArm("DDP, training.compile", True, {"compile": True}, "one_compile"),
    "full_shard": _divided("FULL_SHARD", "one", **_FULL),
    "full_shard_prefetch": _divided("FULL_SHARD, forward_prefetch", "one", **_FULL, forward_prefetch=True),
    "full_shard_compile": _divided("FULL_SHARD, training.compile", "one_compile", **_FULL, compile=True),
    "full_shard_recompute": _divided("FULL_SHARD, gradient checkpointing", "one_recompute", **_FULL, recomputes=True),
    "shard_grad_op": _divided("SHARD_GRAD_OP", "one", sharding_strategy="SHARD_GRAD_OP"),
    "offload": _divided("FULL_SHARD, cpu_offload", "one", **_FULL, cpu_offload=True),
}
Runs = list[Steps] | str
"""Of an arm, or why it has none."""


def main() -> None:
    """Runs the cells, and prints and writes a table of each."""
    arguments = parse_options()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 0
    if count < 2:
        print(f"benchmarks.gpu.ranks {NEEDS} {'is' if count == 1 else 'are'} {count or 'none'}")
        return
    num_gpus = min(arguments.gpus or count, count)
    properties = torch.cuda.get_device_properties(0)
    setting = f"{num_gpus} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
    for name in arguments.cells:
        cell = CELLS[name]
        reasons = left_out(cell, arguments.arms, properties.total_memory)
        results = run_cell(cell, [arm for arm in arguments.arms if arm not in reasons], arguments, num_gpus)
        rows = {arm: row_of(cell, arm, results, num_gpus, nominal_flops(properties.name)) for arm in results}
        text = report(cell, rows, setting, reasons)
        write_results(arguments.results / f"gpu_ranks-{name}", text, setting, rows, results)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, CELLS, ARMS)
    parser.add_argument("--gpus", type=int, help="how many; all by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the tables")
    options = checked(parser, words, CELLS, ARMS)
    if options.gpus is not None and options.gpus < 2:
        parser.error(f"--gpus: expected a number > 1, got {options.gpus}")
    return options


def left_out(cell: Cell, names: Sequence[str], memory_bytes: int) -> dict[str, str]:
    """Returns the arms that are not run on GPUs with so much memory, and why."""
    reasons = {}
    for name in names:
        if cell.recomputes and "recomputes" in ARMS[name].options:
            reasons[name] = "all arms of this table compute all layers again"
        elif ARMS[name].has_whole_model and memory_bytes < cell.needs_gib * 2**30:
            reasons[name] = f"needs about {cell.needs_gib} GiB on each GPU"
    return reasons


def run_cell(cell: Cell, names: Sequence[str], arguments: argparse.Namespace, num_gpus: int) -> dict[str, Runs]:
    """Runs arms in turns, and returns the runs of each, or the reason of its failure."""
    arguments.cache.mkdir(parents=True, exist_ok=True)
    model = write_model(arguments.cache / cell.shape, SHAPES[cell.shape])
    rows = {
        count: write_rows(arguments.cache / f"rows-{count}.jsonl", arguments.steps * cell.rows * count)
        for count in (1, num_gpus)
    }
    results: dict[str, Runs] = {name: [] for name in names}
    for turn in range(arguments.repeats):
        # Alternating, so that GPUs that heat up favor no arm.
        for name in names if turn % 2 == 0 else reversed(names):
            runs, count = results[name], gpus_of(name, num_gpus)
            if isinstance(runs, list):
                steps = run(cell, ARMS[name], model, rows[count], arguments, count)
                results[name] = steps if isinstance(steps, str) else [*runs, steps]
                print(f"{ARMS[name].title}: {run_line(cell, steps, count)}", file=sys.stderr, flush=True)
    return results


def gpus_of(name: str, num_gpus: int) -> int:
    """Returns the number of GPUs of an arm."""
    return 1 if ARMS[name].base is None else num_gpus


def row_of(
    cell: Cell, name: str, results: Mapping[str, Runs], num_gpus: int, peak_flops: float | None
) -> dict[str, Any]:
    """Returns the measures of an arm: medians over its runs, relative to the arms that it is compared with."""
    runs, arm, count = results[name], ARMS[name], gpus_of(name, num_gpus)
    row: dict[str, Any] = {"title": arm.title, "num_gpus": count}
    tokens_per_second = speed(cell, runs, count)
    if tokens_per_second is None or isinstance(runs, str):
        return {**row, "problem": runs or "no run"}
    # The first arm with as many GPUs that ran: TRL's, unless it is left out.
    expected = next(
        other[0].losses
        for other_name, other in results.items()
        if gpus_of(other_name, num_gpus) == count and other and not isinstance(other, str)
    )
    off = max(loss_difference(run.losses, expected) for run in runs)
    if off > MAX_DIFFERENCE:
        return {**row, "problem": f"rejected: losses differ by {off:.1e}"}
    alone = speed(cell, results.get(arm.base or "", ""))
    peaks = zip(*(run.rank_peaks_bytes or (run.peak_bytes,) for run in runs), strict=True)
    return {
        **row,
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * flops_per_token(cell) / (count * peak_flops) if peak_flops else None,
        "efficiency": tokens_per_second / (count * alone) if alone else None,
        "peaks_gib": [statistics.median(of_rank) / 2**30 for of_rank in peaks],
        "planned_gib": None if runs[0].planned_bytes is None else runs[0].planned_bytes / 2**30,
        "losses_differ_by": off,
    }


def report(cell: Cell, rows: Mapping[str, Mapping[str, Any]], setting: str, reasons: Mapping[str, str]) -> str:
    """Returns the report of a cell: the setting, the table, and why arms were left out."""
    lines = [
        f"# {cell.title}, on several GPUs",
        "",
        f"{datetime.now(UTC).isoformat(timespec='minutes')}, commit {commit()}; {setting}; {cell.rows} rows of "
        f"{LENGTH:,} tokens a step on each GPU, the first {NUM_SKIPPED_STEPS} steps not timed. Medians; efficiency is "
        "the speed of a GPU among others by that of one alone with the same settings.",
        "",
        _HEAD,
        "|---" + "|---:" * (_HEAD.count("|") - 2) + "|",
        *(f"| {row['title']} | {' | '.join(_cells(row))} |" for row in rows.values()),
    ]
    if reasons:
        lines += ["", *(f"- not run: {ARMS[name].title}: {reason}" for name, reason in reasons.items())]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "problem" in row:
        text = row["problem"].replace("\n", " ").replace("|", "/")
        return [str(row["num_gpus"]), text, *[""] * (_HEAD.count("|") - 4)]
    return [
        str(row["num_gpus"]),
        f"{row['tokens_per_second']:,.0f}",
        _share(row["mfu"]),
        _share(row["efficiency"]),
        ", ".join(f"{peak:.1f}" for peak in row["peaks_gib"]),
        "-" if row["planned_gib"] is None else f"{row['planned_gib']:.1f}",
        f"{row['losses_differ_by']:.1e}",
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def write_results(
    path: Path, text: str, setting: str, rows: Mapping[str, Mapping[str, Any]], results: Mapping[str, Runs]
) -> None:
    """Prints a report, and writes it as Markdown, and all measurements as JSON; `path` has no ending."""
    print("\n" + text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text + "\n")
    runs = {name: runs if isinstance(runs, str) else [asdict(run) for run in runs] for name, runs in results.items()}
    path.with_suffix(".json").write_text(json.dumps({"setting": setting, "arms": rows, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
