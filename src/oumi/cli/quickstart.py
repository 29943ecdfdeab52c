# SPDX-License-Identifier: Apache-2.0
"""`oumi quickstart`: trains the model that ships, and shows its answers before and after."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from oumi.core.inference import Speaker
    from oumi.datasets.sft.quickstart import Turn

NUM_QUESTIONS = 200
PASS_SHARE = 0.9
_NUM_SHOWN = 8
_MAX_NEW_TOKENS = 16
_CELL_WIDTH = 12


def quickstart(
    output_dir: Annotated[Path, typer.Option(help="Where the trained model goes.")] = Path("output/quickstart"),
    seed: Annotated[int, typer.Option(help="Of the weights, the questions and their order.")] = 42,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop early; fewer answers will be right.")] = None,
) -> None:
    """Train a tiny model for about a minute and see what it learned. Needs no GPU, account or network."""
    from oumi.core.system.host import keep_freed_memory, let_waiting_threads_sleep

    let_waiting_threads_sleep()
    keep_freed_memory()
    typer.echo("A tiny model with random weights will learn to spell words backwards and to count their letters.")
    typer.echo(f"It is asked {NUM_QUESTIONS} questions about words it is never trained on, before and after.\n")
    started = time.perf_counter()
    right, before, after = _learn(output_dir, seed, max_steps)
    _show(right, before, after)
    share = _share_right(right, after)
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    duration = f"{minutes}:{seconds:02d}"
    if max_steps is not None:
        typer.echo(f"Cut short after {max_steps} steps; a whole run reaches {PASS_SHARE:.0%}.")
    typer.echo(f"Right answers: {_share_right(right, before):.0%} before, {share:.1%} after, in {duration}.")
    _tell_next(output_dir)
    if max_steps is None and share < PASS_SHARE:
        typer.echo(f"That is fewer than the {PASS_SHARE:.0%} that a whole run reaches.", err=True)
        raise typer.Exit(1)


def _learn(output_dir: Path, seed: int, max_steps: int | None) -> tuple[list[Turn], list[str], list[str]]:
    """Returns the questions with their right answers, and what the model said before and after."""
    from oumi.core.configs import TrainingConfig
    from oumi.core.inference import load_speaker, load_untrained
    from oumi.core.recipes import resolve_config
    from oumi.core.train import train
    from oumi.datasets.sft.quickstart import make_questions

    config = TrainingConfig.from_yaml(str(resolve_config("quickstart")))
    config.training.output_dir = str(output_dir)
    config.training.seed = config.training.data_seed = seed
    config.training.save_steps = 0  # so that the next quickstart may use the same place
    if max_steps is not None:
        config.training.max_steps = max_steps
    right = make_questions("test", NUM_QUESTIONS, seed)
    before = _ask(load_untrained(config.model.model_name, seed), right)
    train(config)
    return right, before, _ask(load_speaker(output_dir), right)


def _ask(speaker: Speaker, turns: list[Turn]) -> list[str]:
    from oumi.core.inference import answer

    chats = [[{"role": "user", "content": question}] for question, _ in turns]
    return answer(speaker, chats, max_new_tokens=_MAX_NEW_TOKENS)


def _share_right(turns: list[Turn], answers: list[str]) -> float:
    return sum(right == answer for (_, right), answer in zip(turns, answers, strict=True)) / len(turns)


def _show(turns: list[Turn], before: list[str], after: list[str]) -> None:
    """Prints the first questions as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Question", "Before", "After", "Right answer")
    for (question, right), old, new in list(zip(turns, before, after, strict=True))[:_NUM_SHOWN]:
        texts = [Text(_printable(text), style="green" if text == right else "red") for text in (old, new)]
        table.add_row(question, *texts, right)
    Console().print("", table)


def _printable(text: str) -> str:
    """Returns an answer of random weights as something that a table can hold."""
    shown = "".join(char if char.isascii() and char.isprintable() else "·" for char in text)
    return shown if len(shown) <= _CELL_WIDTH else shown[: _CELL_WIDTH - 1] + "…"


def _tell_next(output_dir: Path) -> None:
    typer.echo(f"\nTalk to it:          oumi chat {output_dir}    (try: Spell stressed backwards.)")
    typer.echo("Train a real model:  oumi train -c configs/recipes/smollm/sft/135m/quickstart_train.yaml")
