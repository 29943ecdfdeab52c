# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on the cores of one machine with one rank of two threads, or with two ranks of one thread.

Oumi and TRL train the same rows in the same steps, in turns, as in `benchmarks.sft_cpu`, and are rejected for other
losses. Every run is measured by the same clock on each of its ranks. Several ranks are started by torchrun.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers import RANKS, Peer
from benchmarks.sft.measure import NUM_THREADS, Run
from benchmarks.sft.tables import NUM_SKIPPED_STEPS, Outcome, num_runs, ratio, table_with
from benchmarks.sft_cpu import checked, compare, facts_of, new_parser, versions_of, write_results

_HEAD = (
    "| | ranks x threads | tokens/s | time x | CPU ms/token | CPU x | peak MiB of each rank | MiB sent a step "
    "| first step s | losses differ by | runs |"
)


def main() -> None:
    """Runs the comparison of each shape, and prints and writes its table."""
    arguments = parse_options()
    for shape in arguments.shapes:
        rows, outcomes, num_tokens = compare(arguments, shape)
        rows = {name: {**row, **of_ranks(outcomes[name])} for name, row in rows.items()}
        facts = facts_of(arguments, shape, outcomes, num_tokens)
        path = arguments.results / f"ranks_cpu-{shape}"
        write_results(path, report(facts, rows), {**facts, "peers": rows}, outcomes)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = new_parser(__doc__, RANKS)
    return checked(parser, parser.parse_args(words), RANKS)


def of_ranks(outcome: Outcome) -> dict[str, Any]:
    """Returns what the table shows of the ranks of a peer: medians of its runs."""
    return {
        "ranks": f"{outcome.peer.num_ranks} x {_threads(outcome.peer)}",
        "rank_peaks_mib": [
            statistics.median(peaks) / 2**20
            for peaks in zip(*(run.steps.rank_peaks_bytes for run in outcome.runs), strict=True)
        ],
        "sent_mib": statistics.median(map(_sent_bytes, outcome.runs)) / 2**20 if outcome.runs else None,
    }


def report(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the report: the setting and the table."""
    shape, tokens = facts["shape"], facts["tokens_per_step"]
    lines = [
        f"# Two ranks on one machine: {shape['name']}",
        "",
        f"{facts['date']}, commit {facts['commit']}; {facts['cpu']}, {facts['cores']} cores, fp32, gloo. A Llama of "
        f"{shape['layers']} layers, hidden size {shape['hidden']}, vocabulary {shape['vocabulary']}; {facts['steps']} "
        f"steps of {facts['rows_per_step']} chats, {sum(tokens) / len(tokens):.0f} tokens a step, the first "
        f"{NUM_SKIPPED_STEPS} not timed. Medians; 'x' is how many times what Oumi takes with one rank. CPU time is of "
        "all ranks, and so is what they send to each other, as the loopback device of the machine counts it.",
        "",
        table_with(_HEAD, _cells, rows),
    ]
    return "\n".join([*lines, *versions_of(facts)])


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["ranks"],
        f"{row['tokens_per_second']:,.0f}",
        ratio(row["time_ratio"]),
        f"{row['cpu_ms_per_token']:.2f}",
        ratio(row["cpu_ratio"]),
        ", ".join(f"{peak:,.0f}" for peak in row["rank_peaks_mib"]),
        f"{row['sent_mib']:,.1f}",
        f"{row['first_step_s']:.1f}",
        f"{row['losses_differ_by']:.1e}",
        num_runs(row),
    ]


def _sent_bytes(run: Run) -> float:
    """Returns the bytes of a usual step."""
    # The median, since what other programs send comes and goes.
    return statistics.median(run.steps.sent_bytes[NUM_SKIPPED_STEPS:])


def _threads(peer: Peer) -> int:
    """Returns the threads of each rank."""
    return NUM_THREADS // peer.num_ranks


if __name__ == "__main__":
    main()
