# SPDX-License-Identifier: Apache-2.0
"""`oumi quickstart`: trains a tiny model, and shows its answers before and after."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from oumi.core.results.chat_model import ChatModel
    from oumi.datasets.sft.quickstart import Turn

NUM_QUESTIONS = 200
PASS_SHARE = 0.9
"""Share of correct answers that a full run reaches."""
_NUM_SHOWN = 8
_MAX_NEW_TOKENS = 16
_CELL_WIDTH = 12


def quickstart(
    output_dir: Annotated[Path, typer.Option(help="Directory of the trained model.")] = Path("output/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of the weights, the questions and their order.")] = 42,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop early; fewer answers will be correct.")] = None,
) -> None:
    """Train a tiny model for about a minute and see what it learned. Needs no GPU, account or network."""
    from oumi.core.system.host import keep_freed_memory, let_waiting_threads_sleep

    # Both must be called before torch starts threads and allocates memory.
    let_waiting_threads_sleep()
    keep_freed_memory()
    typer.echo("A tiny model with random weights will learn to spell words backwards and to count their letters.")
    typer.echo(f"Before and after, it answers {NUM_QUESTIONS} questions about words that are not in its data.\n")
    started = time.perf_counter()
    right, before, after = _learn(output_dir, seed, max_steps)
    _show(right, before, after)
    share = _share_right(right, after)
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    duration = f"{minutes}:{seconds:02d}"
    if max_steps is not None:
        typer.echo(f"Stopped after {max_steps} steps; a full run reaches {PASS_SHARE:.0%}.")
    typer.echo(f"Correct answers: {_share_right(right, before):.0%} before, {share:.1%} after, in {duration}.")
    typer.echo(f"\nChat with it:        oumi chat {output_dir}    (try: Spell stressed backwards.)")
    typer.echo("Train a real model:  oumi train -c configs/recipes/smollm/sft/135m/quickstart_train.yaml")
    if max_steps is None and share < PASS_SHARE:
        typer.echo(f"That is fewer than the {PASS_SHARE:.0%} that a full run reaches.", err=True)
        raise typer.Exit(1)


def _learn(output_dir: Path, seed: int, max_steps: int | None) -> tuple[list[Turn], list[str], list[str]]:
    """Returns the questions with their correct answers, and the answers of the model before and after training."""
    from oumi.core.configs import TrainingConfig
    from oumi.core.recipes import resolve_config
    from oumi.core.results.chat_model import load_chat_model, load_untrained
    from oumi.core.train import train
    from oumi.datasets.sft.quickstart import make_questions

    config = TrainingConfig.from_yaml(str(resolve_config("quickstart")))
    config.training.output_dir = str(output_dir)
    config.training.seed = config.training.data_seed = seed
    config.training.save_steps = 0  # so that the next quickstart can use the same directory
    if max_steps is not None:
        config.training.max_steps = max_steps
    # The words of these questions are not in the training set.
    right = make_questions("test", NUM_QUESTIONS, seed)
    before = _ask(load_untrained(config.model.model_name, seed), right)
    train(config)
    return right, before, _ask(load_chat_model(output_dir), right)


def _ask(model: ChatModel, turns: list[Turn]) -> list[str]:
    from oumi.core.results.chat_model import answer

    chats = [[{"role": "user", "content": question}] for question, _ in turns]
    return answer(model, chats, max_new_tokens=_MAX_NEW_TOKENS)


def _share_right(turns: list[Turn], answers: list[str]) -> float:
    return sum(right == answer for (_, right), answer in zip(turns, answers, strict=True)) / len(turns)


def _show(turns: list[Turn], before: list[str], after: list[str]) -> None:
    """Prints the first questions as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def printable(text: str) -> str:
        # Random weights answer with anything, control characters included.
        visible = "".join(char if char.isascii() and char.isprintable() else "·" for char in text)
        return visible if len(visible) <= _CELL_WIDTH else visible[: _CELL_WIDTH - 1] + "…"

    table = Table("Question", "Before", "After", "Correct answer")
    for (question, right), old, new in list(zip(turns, before, after, strict=True))[:_NUM_SHOWN]:
        texts = [Text(printable(text), style="green" if text == right else "red") for text in (old, new)]
        table.add_row(question, *texts, right)
    Console().print("", table)
