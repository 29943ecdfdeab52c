# SPDX-License-Identifier: Apache-2.0
"""Pretraining on a CPU: the time of Oumi and of nanoGPT's recipe to the same loss on held-out text.

The setting is nanoGPT's for a CPU: single characters of Shakespeare, 4 layers of 128, 12 windows of 64 tokens a step,
2000 steps. Each run is a process of its own; arms take turns, in reverse every other round, each round with a seed of
its own; the table shows medians. Weights are saved at intervals, and their loss is measured afterwards by the
same code for all arms, over all of the held-out text; neither saving nor measuring counts as training. A run during
which other programs used the machine is discarded and repeated.

`--text` is the file that nanoGPT calls data/shakespeare_char/input.txt and torchtune and others `tinyshakespeare.txt`,
1.1 MB: https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.pretrain.recipe import ARMS, Recipe, Task, make_task, split
from benchmarks.pretrain.runs import train
from benchmarks.pretrain.tables import Outcome, check_steps, curve, summary, table, target_loss
from benchmarks.sft.measure import NUM_THREADS, PeerError
from benchmarks.sft_cpu import MAX_CONTENTION, MAX_TRIES, RESULTS, commit, cpu_model, in_turn

PUBLISHED_LOSS = 1.88
"""After 2000 steps, from nanoGPT's documentation."""
FIRST_SEED = 1337
_MIN_STEPS = 20


def main() -> None:
    """Runs the comparison, and prints and writes its table."""
    arguments = parse_options()
    text = arguments.text.read_text(encoding="utf-8")
    recipe = scaled(arguments.steps)
    with tempfile.TemporaryDirectory() as name:
        task = make_task(Path(name), text, recipe, arguments.every, arguments.threads)
        outcomes = {arm: Outcome(ARMS[arm]) for arm in arguments.arms}
        for turn in range(arguments.repeats):
            for arm in in_turn(arguments.arms, turn):
                if not outcomes[arm].failure:
                    take_turn(task, outcomes[arm], FIRST_SEED + turn, split(text)[1], arguments.max_contention)
    write_results(arguments, recipe, outcomes)


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="Tiny Shakespeare, or any other text")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="the schedule is stretched to fit")
    parser.add_argument("--every", type=int, default=250, help="steps between two measurements")
    parser.add_argument("--threads", type=int, default=NUM_THREADS, help="of each run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the tables")
    parser.add_argument("--max-contention", type=float, default=MAX_CONTENTION)
    options = parser.parse_args(words)
    for name in options.arms:
        if name not in ARMS:
            parser.error(f"unknown arm '{name}', expected one of {', '.join(ARMS)}")
    if options.steps < _MIN_STEPS:
        parser.error(f"--steps must be {_MIN_STEPS} or more")
    if options.steps % options.every:
        parser.error(f"--steps {options.steps} is not a multiple of --every {options.every}")
    if not options.text.is_file():
        parser.error(f"--text: no such file: {options.text}")
    return options


def scaled(num_steps: int) -> Recipe:
    """Returns the recipe over other than 2000 steps, with the same share of warm-up."""
    share = Recipe.warmup_steps / Recipe.num_steps
    return Recipe(num_steps=num_steps, warmup_steps=round(share * num_steps))


def take_turn(task: Task, outcome: Outcome, seed: int, held_out: str, max_contention: float) -> None:
    """Trains with an arm until a run was not disturbed by other programs, at most MAX_TRIES times."""
    for _ in range(MAX_TRIES):
        try:
            trained = train(task, outcome.arm, seed, held_out)
            if problem := check_steps(trained.run.steps, trained.losses, task.recipe):
                raise PeerError(problem)
        except PeerError as error:
            print(f"{outcome.arm.title}: {error}", file=sys.stderr)
            outcome.failure = "failed: " + str(error).splitlines()[0]
            return
        run, loss = trained.run, trained.losses[task.recipe.num_steps]
        line = f"{outcome.arm.title}: {run.wall_s:.1f} s, loss {loss:.4f}, contention {run.contention:.0%}"
        if run.contention <= max_contention:
            print(line, flush=True)
            outcome.trained.append(trained)
            return
        print(f"{line}: discarded", flush=True)
        outcome.num_discarded += 1


def write_results(arguments: argparse.Namespace, recipe: Recipe, outcomes: Mapping[str, Outcome]) -> None:
    """Prints the tables, and writes them with all measurements."""
    target = target_loss(PUBLISHED_LOSS, list(outcomes.values()))
    rows = summary(outcomes, target, recipe)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "text": arguments.text.name,
        "recipe": asdict(recipe),
        "target_loss": target,
        "versions": {
            name: dict(outcome.trained[0].run.steps.versions) for name, outcome in outcomes.items() if outcome.trained
        },
    }
    text = report(facts, recipe, table(rows), curve(outcomes))
    print("\n" + text)
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "pretrain_cpu"
    path.with_suffix(".md").write_text(text + "\n")
    runs = {name: [asdict(run) for run in outcome.trained] for name, outcome in outcomes.items()}
    path.with_suffix(".json").write_text(json.dumps({**facts, "arms": rows, "runs": runs}) + "\n")


def report(facts: Mapping[str, Any], recipe: Recipe, arms: str, losses: str) -> str:
    """Returns the report: the setting and the tables."""
    target = facts["target_loss"]
    reached = "" if target == PUBLISHED_LOSS else f" (reached by every run; nanoGPT reports {PUBLISHED_LOSS})"
    shape = f"{recipe.num_layers} layers of {recipe.width}, {recipe.num_heads} heads"
    work = f"{recipe.num_steps} steps of {recipe.batch} rows, each of {recipe.block} tokens to predict"
    lines = [
        f"# Pretraining on a CPU: {facts['text']}",
        "",
        f"{facts['date']}, commit {facts['commit']}; {facts['cpu']}, {facts['cores']} cores, {facts['threads']} "
        f"threads, fp32. {shape}; {work}. The loss is {target:.4g}{reached}, measured over the whole held-out text. "
        "Medians; 'x' is how many times what the first row takes to that loss without start-up, which is the time "
        "from the start of the process to its first step.",
        "",
        arms,
        "",
        "## Loss on the held-out text",
        "",
        losses,
    ]
    versions = (
        f"- {name}: {' '.join(f'{k} {v}' for k, v in versions.items())}" for name, versions in facts["versions"].items()
    )
    return "\n".join([*lines, "", "Versions:", "", *versions])


if __name__ == "__main__":
    main()
