# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on a CPU: Oumi and its peers on the same rows, with the same steps and the same losses.

Each peer has a virtual environment of its own, created here, and each run is a process of its own. Peers take turns, in
reverse every other round; the table shows medians. A time is that of the steps after the first five. A run during
which other programs used the machine is discarded and repeated. A peer whose loss differs from a plain PyTorch loop's
by more than 0.1 % in any step is rejected, as it did other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import ADAPTERS, ENVIRONMENTS, PEERS, REFERENCES, Peer, ablations, before_and_now
from benchmarks.sft.environments import ready_python
from benchmarks.sft.measure import BATCH, PeerError, Run, Task, run_peer
from benchmarks.sft.tables import NUM_SKIPPED_STEPS, Outcome, summary, table
from benchmarks.sft.workload import SHAPES, make_workload

RESULTS = Path(__file__).parent / "results"
MAX_CONTENTION = 0.15
TITLES = {"oumi": "Every token is trained", "oumi_answers": "Only answers are trained"}
OURS = ("torch", "oumi", "transformers")
"""Packages of this repository whose versions are in the result."""
MAX_TRIES = 3
"""Of one turn of a peer."""


def main() -> None:
    """Runs the comparison of each shape, and prints and writes its table."""
    arguments = parse_options()
    kind = "before" if arguments.before else "ablation" if arguments.ablate else "cpu"
    for shape in arguments.shapes:
        rows, outcomes, num_tokens = compare(arguments, shape)
        facts = facts_of(arguments, shape, outcomes, num_tokens)
        path = arguments.results / f"{arguments.peft or 'sft'}_{kind}-{shape}"
        write_results(path, report(facts, rows), {**facts, "peers": rows}, outcomes)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = new_parser(__doc__, PEERS)
    parser.add_argument(
        "--ablate", action="store_true", help="Oumi alone, with each of its techniques disabled in turn"
    )
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="compare with an older checkout of this repository instead"
    )
    parser.add_argument("--peft", choices=list(ADAPTERS), help="train an adapter instead, beside TRL alone")
    options = parser.parse_args(words)
    if options.before and not (options.before / "src/oumi").is_dir():
        parser.error(f"--before {options.before}: expected a checkout of this repository")
    peers = before_and_now(options.before) if options.before else ablations() if options.ablate else PEERS
    if options.peft:
        if options.before or options.ablate:
            parser.error("--peft is a comparison of its own")
        peers = ADAPTERS[options.peft]
    return checked(parser, options, peers)


def new_parser(description: str | None, peers: Mapping[str, Peer]) -> argparse.ArgumentParser:
    """Returns a parser of the options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=_names, default=["14m"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--peers", type=_names, help=f"of {', '.join(peers)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help=f"the first {NUM_SKIPPED_STEPS} are not timed")
    parser.add_argument("--rows", type=int, help="of the file; as many as the steps need by default")
    parser.add_argument(
        "--cache", type=Path, default=Path("~/.cache/oumi/benchmarks"), help="for environments and files"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the tables")
    parser.add_argument("--max-contention", type=float, default=MAX_CONTENTION)
    return parser


def checked(
    parser: argparse.ArgumentParser, options: argparse.Namespace, peers: Mapping[str, Peer]
) -> argparse.Namespace:
    """Returns the options with the selected peers; ends the program if they are wrong."""
    options.cache = options.cache.expanduser().absolute()
    for names, table_of in ((options.peers or [], peers), (options.shapes, SHAPES)):
        for name in names:
            if name not in table_of:
                parser.error(f"unknown name '{name}', expected one of {', '.join(table_of)}")
    if options.steps <= NUM_SKIPPED_STEPS:
        parser.error(f"--steps must be more than {NUM_SKIPPED_STEPS}")
    if options.rows and options.rows < options.steps * BATCH:
        parser.error(f"{options.steps} steps take {options.steps * BATCH} rows")
    selected = options.peers or [name for name, peer in peers.items() if not peer.is_extra]
    options.peers = {name: peers[name] for name in selected}
    return options


def compare(
    arguments: argparse.Namespace, shape: str, are_pairs: bool = False
) -> tuple[dict[str, dict[str, Any]], dict[str, Outcome], list[int]]:
    """Runs the peers on a shape, and returns the rows of the table, the runs, and the tokens of each step."""
    num_rows = arguments.rows or arguments.steps * BATCH
    folder = arguments.cache / "work" / f"{shape}-{num_rows}{'-pairs' if are_pairs else ''}"
    work = make_workload(folder, SHAPES[shape], num_rows, are_pairs)
    task = Task(work, arguments.steps, folder / "run")
    names = dict.fromkeys(peer.reference for peer in arguments.peers.values())
    references = {name: reference_losses(task, name, arguments.cache) for name in names}
    outcomes = run_rounds(task, arguments.peers, arguments)
    num_tokens = [sum(work.num_tokens[i * BATCH : (i + 1) * BATCH]) for i in range(arguments.steps)]
    return summary(outcomes, references, num_tokens, BATCH), outcomes, num_tokens


def reference_losses(task: Task, name: str, cache: Path) -> list[float]:
    """Returns the losses of a reference: measured once per workload, then read from a file."""
    path = task.work.folder / f"{name}-{task.num_steps}.json"
    if not path.exists():
        print(f"{name}: losses to compare with ...", flush=True)
        run = start(task, REFERENCES[name], cache)
        path.write_text(json.dumps(run.steps.losses))
    losses: list[float] = json.loads(path.read_text())
    return losses


def run_rounds(task: Task, peers: Mapping[str, Peer], arguments: argparse.Namespace) -> dict[str, Outcome]:
    """Runs the peers in turns."""
    outcomes = {name: Outcome(peer) for name, peer in peers.items()}
    for turn in range(arguments.repeats):
        for name in in_turn(list(peers), turn):
            if not outcomes[name].failure:
                take_turn(task, outcomes[name], arguments)
    return outcomes


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """Returns the order of a round: every second round is reversed."""
    # So that neither a machine that heats up nor one that gets busier favors a peer.
    return list(names) if turn % 2 == 0 else list(reversed(names))


def take_turn(task: Task, outcome: Outcome, arguments: argparse.Namespace) -> None:
    """Runs a peer until a run was not disturbed by other programs, at most MAX_TRIES times."""
    for _ in range(MAX_TRIES):
        try:
            run = start(task, outcome.peer, arguments.cache)
        except PeerError as error:
            print(f"{outcome.peer.title}: {error}", file=sys.stderr)
            outcome.failure = "failed: " + str(error).splitlines()[0]
            return
        speed = (task.num_steps - NUM_SKIPPED_STEPS) / sum(run.steps.walls_s[NUM_SKIPPED_STEPS:])
        line = f"{outcome.peer.title}: {speed:.3f} steps/s, contention {run.contention:.0%}"
        if run.contention <= arguments.max_contention:
            print(line, flush=True)
            outcome.runs.append(run)
            return
        print(f"{line}: discarded", flush=True)
        outcome.num_discarded += 1


def start(task: Task, peer: Peer, cache: Path) -> Run:
    """Runs a peer once, in its environment."""
    if peer.environment is None:
        return run_peer(task, peer, sys.executable, OURS)
    environment = ENVIRONMENTS[peer.environment]
    return run_peer(task, peer, ready_python(cache / peer.environment, environment), environment.reported)


def facts_of(
    arguments: argparse.Namespace, shape: str, outcomes: Mapping[str, Outcome], num_tokens: Sequence[int]
) -> dict[str, Any]:
    """Returns the setting of a comparison."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "shape": {"name": shape, **asdict(SHAPES[shape])},
        "steps": arguments.steps,
        "rows_per_step": BATCH,
        "tokens_per_step": list(num_tokens),
        "versions": {name: dict(outcome.runs[0].steps.versions) for name, outcome in outcomes.items() if outcome.runs},
    }


def write_results(path: Path, text: str, facts: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    """Prints a report, and writes it as Markdown, and all measurements as JSON; `path` has no ending."""
    print("\n" + text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text + "\n")
    runs = {name: [asdict(run) for run in outcome.runs] for name, outcome in outcomes.items()}
    path.with_suffix(".json").write_text(json.dumps({**facts, "runs": runs}) + "\n")


def report(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the report: the setting, and a table for each base row."""
    shape, tokens = facts["shape"], facts["tokens_per_step"]
    lines = [
        f"# Fine-tuning on a CPU: {shape['name']}",
        "",
        f"{facts['date']}, commit {facts['commit']}; {facts['cpu']}, {facts['cores']} cores, 2 threads, fp32. A Llama "
        f"of {shape['layers']} layers, hidden size {shape['hidden']}, vocabulary {shape['vocabulary']}; "
        f"{facts['steps']} steps of {facts['rows_per_step']} chats, {sum(tokens) / len(tokens):.0f} tokens a step, "
        f"the first {NUM_SKIPPED_STEPS} not timed. Medians; 'x' is how many times what Oumi takes. Padding "
        "counts as no token.",
    ]
    for base, title in TITLES.items():
        part = {name: row for name, row in rows.items() if row["base"] == base}
        if part:
            lines += ["", f"## {title}", "", table(part)]
    return "\n".join([*lines, *versions_of(facts)])


def versions_of(facts: Mapping[str, Any]) -> list[str]:
    """Returns the end of a report: the packages of the peers, each set of them once."""
    versions = {" ".join(f"{k} {v}" for k, v in packages.items()): name for name, packages in facts["versions"].items()}
    return ["", "Versions:", "", *(f"- {name}: {text}" for text, name in versions.items())]


def cpu_model() -> str:
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def commit() -> str:
    """Returns the commit of this repository, with a plus sign if its files were changed since."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
