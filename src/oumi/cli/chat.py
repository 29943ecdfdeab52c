# SPDX-License-Identifier: Apache-2.0
"""`oumi chat MODEL_DIR` and `oumi infer -i`: talk to a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oumi.core.errors import ConfigError

if TYPE_CHECKING:
    from oumi.core.inference import Speaker

ModelDir = Annotated[Path, typer.Argument(help="Directory of a trained model, an adapter, or a checkpoint.")]
System = Annotated[str | None, typer.Option(help="What the model is told before the chat.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the most likely answer. Above: drawn at random.")]

_GREETING = "Ask; /reset forgets what was said, /quit or Ctrl-D ends."


def chat(
    model_dir: ModelDir,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talk to a trained model. Where no one sits at a terminal, each line of the input is a question."""
    from oumi.core.inference import load_speaker

    talk = Talk(load_speaker(model_dir), system, max_new_tokens, temperature)
    if sys.stdin.isatty():
        typer.echo(_GREETING, err=True)
        converse(talk, _typed(), _say)
    else:
        converse(talk, (line.rstrip("\r\n") for line in sys.stdin), _say)


def infer(
    model_dir: Annotated[Path | None, typer.Argument(help="Directory of a trained model.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Ask at the terminal.")] = False,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Training config; its output_dir holds the model.")
    ] = None,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Ask a trained model: `oumi infer -i MODEL_DIR`, or `oumi infer -i -c FILE` for what FILE trained."""
    if not interactive:
        raise ConfigError("answering a file of questions is not built yet; add -i to ask at the terminal")
    if (model_dir is None) == (config is None):
        raise ConfigError("name one model: its directory, or with -c the config that trained it")
    chat(model_dir or _trained_by(str(config)), system, max_new_tokens, temperature)


class Talk:
    """A chat that goes on: remembers what was said, as far back as the model can read."""

    def __init__(self, speaker: Speaker, system: str | None, max_new_tokens: int, temperature: float) -> None:
        self._speaker = speaker
        self._start = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature

    @property
    def messages(self) -> list[dict[str, str]]:
        """Returns what is remembered, the system message first."""
        return [*self._start, *self._turns] if self._turns else []

    def reset(self) -> None:
        """Forgets what was said."""
        self._turns = []

    def ask(self, question: str, on_text: Callable[[str], None]) -> str:
        """Returns the answer, and hands its pieces to `on_text`; a question that fails is forgotten."""
        from oumi.core.inference import stream_answer

        turns = [*self._turns, {"role": "user", "content": question}]
        while len(turns) > 1 and not self._fits(turns):
            turns = turns[2:]
        answer = stream_answer(self._speaker, [*self._start, *turns], on_text, self._max_new_tokens, self._temperature)
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        return answer

    def _fits(self, turns: list[dict[str, str]]) -> bool:
        """Returns True if a quarter of the model's length, or the longest answer, is left for the answer."""
        length = self._speaker.max_length
        left = length - len(self._speaker.prompt([*self._start, *turns]))
        return left >= min(self._max_new_tokens, length // 4)


def converse(talk: Talk, lines: Iterator[str], say: Callable[[str], None]) -> None:
    """Answers each line until the lines end or one is `/quit`; Ctrl-C breaks off an answer."""
    for line in lines:
        question = line.strip()
        if question == "/quit":
            return
        if question == "/reset":
            talk.reset()
        elif question.startswith("/"):
            typer.echo(f"unknown command {question}; there are /reset and /quit", err=True)
        elif question:
            try:
                talk.ask(question, say)
            except KeyboardInterrupt:
                pass
            except ConfigError as error:  # too long: the chat goes on
                typer.echo(str(error), err=True)
            say("\n")


def _typed() -> Iterator[str]:
    """Yields what a person types, with the line editing of the shell."""
    import readline  # noqa: F401  gives input() its history and keys

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo("", err=True)
            return


def _say(text: str) -> None:
    """Prints a piece of an answer; control characters, which would steer the terminal, are made visible."""
    print(
        "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text),
        end="",
        flush=True,
    )


def _trained_by(config: str) -> Path:
    from oumi.core.configs import TrainingConfig
    from oumi.core.plan.trainer_kwargs import as_run
    from oumi.core.recipes import resolve_config

    return Path(as_run(TrainingConfig.from_yaml(resolve_config(config))).training.output_dir).expanduser()
