# SPDX-License-Identifier: Apache-2.0
"""Preferences on a CPU: Oumi and TRL on the same pairs, with the same steps and the same losses.

A comparison as in `benchmarks.sft_cpu`: with a copy of the model as reference, with the reference's log-probabilities
computed beforehand, and with an adapter, whose base is the reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers import DPO
from benchmarks.sft.tables import NUM_SKIPPED_STEPS, cells, table_with
from benchmarks.sft_cpu import checked, compare, facts_of, new_parser, versions_of, write_results

TITLES = {
    "oumi": "With a copy of the model as reference",
    "oumi_beforehand": "With log-probabilities of the reference computed before the first step",
    "oumi_lora": "With LoRA of all linear layers, whose base is the reference",
}
_HEAD = (
    "| | pairs/s | real tokens/s | CPU ms/token | time x | CPU x | memory x | peak MiB | first step s | whole run s "
    "| losses differ by | runs |"
)


def main() -> None:
    """Runs the comparison of each shape, and prints and writes its table."""
    arguments = parse_options()
    for shape in arguments.shapes:
        rows, outcomes, num_tokens = compare(arguments, shape, are_pairs=True)
        facts = facts_of(arguments, shape, outcomes, num_tokens)
        path = arguments.results / f"dpo_cpu-{shape}"
        write_results(path, report(facts, rows), {**facts, "peers": rows}, outcomes)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = new_parser(__doc__, DPO)
    return checked(parser, parser.parse_args(words), DPO)


def report(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the report: the setting, and a table for each base row."""
    shape, tokens = facts["shape"], facts["tokens_per_step"]
    lines = [
        f"# Preferences on a CPU: {shape['name']}",
        "",
        f"{facts['date']}, commit {facts['commit']}; {facts['cpu']}, {facts['cores']} cores, 2 threads, fp32. A Llama "
        f"of {shape['layers']} layers, hidden size {shape['hidden']}, vocabulary {shape['vocabulary']}; "
        f"{facts['steps']} steps of {facts['rows_per_step']} pairs, {sum(tokens) / len(tokens):.0f} tokens a step, the "
        f"first {NUM_SKIPPED_STEPS} not timed. Medians; 'x' is how many times what Oumi takes. Padding counts as no "
        "token, a prompt counts with each of its answers.",
    ]
    rows = {name: {**row, "num_pairs": facts["rows_per_step"]} for name, row in rows.items()}
    for base, title in TITLES.items():
        part = {name: row for name, row in rows.items() if row["base"] == base}
        if part:
            lines += ["", f"## {title}", "", table_with(_HEAD, _cells, part)]
    return "\n".join([*lines, *versions_of(facts)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['num_pairs'] / row['step_s']:.2f}", *cells(row)[1:]]


if __name__ == "__main__":
    main()
