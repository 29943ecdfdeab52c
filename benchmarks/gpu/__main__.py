# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu`: tokens per second, share of the GPU's peak, and memory of Oumi and TRL on a GPU.

Needs an NVIDIA GPU with bfloat16 (Ampere or newer), and for the first run a package index: TRL gets an environment of
its own. Weights are random, and are written to the cache once (2.5 GB and 16 GB). Each run is a process
of its own; arms take turns, in reverse every other round; the table shows medians of steps after the first ones.
torchtitan is not compared yet: its data and its configs are its own, and need a driver.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

from benchmarks.gpu.cells import CELLS, LENGTH, SHAPES, Cell, flops_per_token, write_model, write_rows
from benchmarks.gpu.runs import Arm, Steps, add_options, checked, run, run_line, speed
from benchmarks.sft.tables import MAX_DIFFERENCE, loss_difference
from oumi.core.system.peaks import nominal_flops

NEEDS = "needs an NVIDIA GPU with bfloat16 (Ampere or newer) and a torch with CUDA; there is none"

ARMS = {
    "trl": Arm("TRL 1.16, Liger", False, {"use_liger_kernel": True}),
    "trl_compile": Arm("the same, compiled", False, {"use_liger_kernel": True, "torch_compile": True}),
    "oumi": Arm("Oumi (this repository), OUMI", True),
    "oumi_liger": Arm("the same, model.enable_liger_kernel", True, {"liger": True}),
    "oumi_compile": Arm("the same, training.compile", True, {"compile": True}),
    "oumi_auto": Arm("the same, recompute_num_layers auto", True, {"compile": True, "recompute": "auto"}),
    "oumi_fp8": Arm("compiled, fp8_recipe rowwise", True, {"compile": True, "fp8_recipe": "rowwise"}),
}


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
    add_options(parser, CELLS, ARMS)
    return checked(parser, words, CELLS, ARMS)


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


def table(cell: Cell, results: dict[str, list[Steps] | str], peak_flops: float | None) -> str:
    """Returns a line for each arm, relative to TRL if it ran; arms with other losses are rejected."""
    lines = [f"{'':<42}{'tokens/s':>10}{'MFU':>8}{'peak GiB':>10}{'x TRL':>8}{'losses off':>12}"]
    first = results.get("trl")
    base = speed(cell, first)
    expected = first[0].losses if first and not isinstance(first, str) else None
    for name, runs in results.items():
        tokens_per_second = speed(cell, runs)
        if tokens_per_second is None or isinstance(runs, str):
            lines.append(f"{ARMS[name].title:<42}  {runs or 'no run'}")
            continue
        mfu = f"{tokens_per_second * flops_per_token(cell) / peak_flops:.1%}" if peak_flops else "-"
        peak = statistics.median(run.peak_bytes for run in runs) / 2**30
        ratio = f"{tokens_per_second / base:.2f}" if base else "-"
        off = max(loss_difference(run.losses, expected) for run in runs) if expected is not None else None
        if off is not None and off > MAX_DIFFERENCE:
            lines.append(f"{ARMS[name].title:<42}  rejected: losses differ by {off:.1e}")
            continue
        difference = "-" if off is None else f"{off:.1e}"
        lines.append(
            f"{ARMS[name].title:<42}{tokens_per_second:>10,.0f}{mfu:>8}{peak:>10.1f}{ratio:>8}{difference:>12}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
