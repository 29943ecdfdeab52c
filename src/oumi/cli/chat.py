# SPDX-License-Identifier: Apache-2.0
"""`oumi chat MODEL_DIR`: chat with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oumi.core.errors import ConfigError

if TYPE_CHECKING:
    from oumi.core.results.chat_model import ChatModel

ModelDir = Annotated[Path, typer.Argument(help="Directory of a trained model, an adapter, or a checkpoint.")]
System = Annotated[str | None, typer.Option(help="System message at the start of the chat.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the most likely tokens. Above 0: tokens are sampled.")]

_GREETING = "Type a message. /reset starts a new chat, /quit or Ctrl-D ends the program."


def chat(
    model_dir: ModelDir,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Chat with a trained model. If the input is not a terminal, each line of it is a question."""
    from oumi.core.results.chat_model import load_chat_model

    run_session(load_chat_model(model_dir), system, max_new_tokens, temperature)


def run_session(model: ChatModel, system: str | None, max_new_tokens: int, temperature: float) -> None:
    """Chats at the terminal, or answers each line of a pipe."""
    session = ChatSession(model, system, max_new_tokens, temperature)
    if sys.stdin.isatty():
        # To stderr, so that stdout contains nothing but answers.
        typer.echo(_GREETING, err=True)
        run_chat(session, _read_terminal(), _print_text)
    else:
        run_chat(session, (line.rstrip("\r\n") for line in sys.stdin), _print_text)


class ChatSession:
    """A chat in progress: keeps its messages, as many as the model can process."""

    def __init__(self, model: ChatModel, system: str | None, max_new_tokens: int, temperature: float) -> None:
        self._model = model
        self._start = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature

    @property
    def messages(self) -> list[dict[str, str]]:
        """Returns the messages that are kept, the system message first."""
        return [*self._start, *self._turns] if self._turns else []  # a system message alone is no chat

    def reset(self) -> None:
        """Drops all messages."""
        self._turns = []

    def ask(self, question: str, on_text: Callable[[str], None]) -> str:
        """Returns the answer, and passes its pieces to `on_text`; a question that fails is not kept."""
        from oumi.core.results.chat_model import stream_answer

        turns = [*self._turns, {"role": "user", "content": question}]
        # A quarter of the context, or the longest answer, stays free for the answer: old turns are dropped in pairs.
        max_prompt = self._model.max_length - min(self._max_new_tokens, self._model.max_length // 4)
        while len(turns) > 1 and len(self._model.prompt([*self._start, *turns])) > max_prompt:
            turns = turns[2:]
        answer = stream_answer(self._model, [*self._start, *turns], on_text, self._max_new_tokens, self._temperature)
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        return answer


# Takes lines and a function instead of the terminal, so that pipes and tests use the same loop.
def run_chat(session: ChatSession, lines: Iterator[str], on_text: Callable[[str], None]) -> None:
    """Answers each line until the lines end or a line is `/quit`; Ctrl-C stops an answer."""
    for line in lines:
        question = line.strip()
        if question == "/quit":
            return
        if question == "/reset":
            session.reset()
        elif question.startswith("/"):
            typer.echo(f"unknown command {question}; the commands are /reset and /quit", err=True)
        elif question:
            try:
                session.ask(question, on_text)
            except KeyboardInterrupt:  # ends the answer, not the chat
                pass
            except ConfigError as error:  # the question is too long: the chat continues without it
                typer.echo(str(error), err=True)
            on_text("\n")


def _read_terminal() -> Iterator[str]:
    """Yields the lines that the user types, with line editing."""
    import readline  # noqa: F401  gives input() its history and keys

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo("", err=True)
            return


def _print_text(text: str) -> None:
    """Prints a piece of an answer; control characters, which could control the terminal, are replaced."""
    print(
        "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text),
        end="",
        flush=True,
    )
