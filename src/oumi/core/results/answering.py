# SPDX-License-Identifier: Apache-2.0
"""Answers the questions of a file, and goes on where an earlier try ended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from oumi.core.data.records.conversations import chat_of, has_media
from oumi.core.data.records.fields import UnusableValue, text_of
from oumi.core.data.records.schemas import led_by_system, turns_of
from oumi.core.data.sources.jsonl import shown
from oumi.core.data.sources.tabular import read_rows
from oumi.core.data.tokenize.chat_template import TemplateError
from oumi.core.errors import ConfigError, OutputError
from oumi.core.models.decoding import Decoding, Generated
from oumi.core.models.generation import generate_all
from oumi.core.results.chat_model import ChatModel
from oumi.core.system.cache import digest_of_values
from oumi.core.system.filesystem import lock, storage_errors
from oumi.core.types.conversation import Conversation, Role
from oumi.core.types.example import RejectedRow, Row

_BATCHES_AT_ONCE = 8
"""Batches whose questions are sorted by length together, and written together in the order of the file."""
_CHATS = ("messages", "conversation", "conversations")
"""Keys of a row that is a chat; any other row gets its answer under a key of its own."""
ANSWER, PROVENANCE = "answer", "provenance"


@dataclass(frozen=True)
class Question:
    """A row of the file, and its tokens up to the answer."""

    row: Row
    tokens: list[int]


@dataclass(frozen=True)
class Answering:
    """What answers the questions of a file."""

    model: ChatModel
    name: str
    """The model's name in the provenance of each answer."""
    weights: str
    """A digest of its weights, or its name."""
    decoding: Decoding
    batch_size: int
    seed: int = 0
    system: str | None = None
    """System message of rows without one."""
    template_kwargs: Mapping[str, Any] | None = None

    def question(self, row: Row) -> Question | RejectedRow:
        """Returns a row with its tokens, or the reason why it cannot be answered."""
        try:
            if not isinstance(row.value, Mapping):
                raise UnusableValue("a row must be an object")
            if PROVENANCE in row.value:
                raise UnusableValue(f"has '{PROVENANCE}' already: is it an answer of `oumi infer`?")
            _line(row.value)  # before an answer is generated that could not be written
            tokens = self._tokens(row.value)
            if not tokens:
                raise UnusableValue("is empty: it has no tokens to continue")
            if len(tokens) >= self.model.max_length:
                limit = f"the model can process {self.model.max_length} with the answer"
                raise UnusableValue(f"too long: it has {len(tokens)} tokens, {limit}")
        except (UnusableValue, TemplateError, ValueError, TypeError) as error:
            return RejectedRow(row.source, str(error), shown(row.value))
        return Question(row, tokens)

    @cached_property
    def identity(self) -> str:
        """Returns a digest of all that decides an answer beside its row."""
        template = self.model.template.text if self.model.template is not None else None
        values = {"decoding": asdict(self.decoding), "template": template, "variables": self.template_kwargs}
        values |= {"weights": self.weights, "dtype": self.model.model.dtype}
        return digest_of_values({**values, "seed": self.seed, "system": self.system})

    def digest(self, row: Row) -> str:
        """Returns a digest of all that decides the answer to a row."""
        return digest_of_values({"row": row.value, "line": row.source.line, "identity": self.identity})

    def _tokens(self, record: Mapping[str, Any]) -> list[int]:
        tokenizer, template = self.model.tokenizer, self.model.template
        question = _question_of(record)
        if isinstance(question, str):
            return list(tokenizer(question)["input_ids"])
        if template is None and "prompt" in record and isinstance(record["prompt"], str) and self.system is None:
            return list(tokenizer(record["prompt"])["input_ids"])
        if template is None:
            raise UnusableValue("a chat, but the tokenizer has no chat template; write 'text' or 'prompt', or set one")
        if self.system is not None and question.messages[0].role != Role.SYSTEM:
            question = led_by_system(question, {"system": self.system})
        text = template.render(question.messages, True, question.tools, self.template_kwargs)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(self, questions: list[Question]) -> list[Generated]:
        """Returns the answer to each question."""
        seeds = [_seed(self.seed, question.row) for question in questions]
        prompts = [question.tokens for question in questions]
        return generate_all(self.model.model, self.model.tokenizer, prompts, self.decoding, self.batch_size, seeds)

    def answered(self, question: Question, answer: Generated) -> dict[str, Any]:
        """Returns a row with its answer: a chat as one more message, any other row by the key `answer`."""
        row = dict(question.row.value)
        provenance = {
            "source": str(question.row.source),
            "model": self.name,
            "finish": "stop" if answer.is_finished else "length",
            "num_tokens": answer.num_tokens,
            "digest": self.digest(question.row),
        }
        key = next((key for key in _CHATS if key in row), None)
        if key is None:
            return {**row, ANSWER: answer.text, PROVENANCE: provenance}
        turns = row[key]["messages"] if isinstance(row[key], Mapping) else row[key]
        is_sharegpt = isinstance(turns[0], Mapping) and "from" in turns[0]
        turn = {"from": "gpt", "value": answer.text} if is_sharegpt else {"role": "assistant", "content": answer.text}
        chat = {**row[key], "messages": [*turns, turn]} if isinstance(row[key], Mapping) else [*turns, turn]
        return {**row, key: chat, PROVENANCE: provenance}


@dataclass
class Outcome:
    """What became of the rows of a file."""

    num_done: int
    """Rows that an earlier try had answered."""
    num_answered: int = 0
    num_tokens: int = 0
    """Tokens of the answers of this try."""
    rejected: list[RejectedRow] = field(default_factory=list)


def answer_file(
    answering: Answering, source: Path, target: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Outcome:
    """Answers the rows of a file, in their order; rows that an earlier try has answered are not answered again.

    Args:
        answering: What answers them.
        source: File of rows with `messages`, `prompt`, `text` or another shape of a question.
        target: File of the answers, one JSON object a line.
        progress: Called with the number of rows that are answered, and of all that can be, after each write.

    Raises:
        ConfigError: `target` has answers to other rows, of another model, or with other settings.
        DataError: `source` is missing or broken.
        OutputError: `target` cannot be written, or another process writes it.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"{target}: the answers would replace the questions; name another file")
    digests = {answering.digest(row) for row in read_rows(source, str(source)) if isinstance(row, Row)}
    with _opened(target) as file, storage_errors(target):
        done = _done(file, target, digests)
        outcome = Outcome(num_done=len(done))
        for questions in _windows(answering, source, done, outcome):
            answers = answering.answers(questions)
            pairs = zip(questions, answers, strict=True)
            file.write(b"".join(_line(answering.answered(question, answer)) for question, answer in pairs))
            file.flush()
            outcome.num_answered += len(answers)
            outcome.num_tokens += sum(answer.num_tokens for answer in answers)
            progress(outcome.num_done + outcome.num_answered, len(digests))
        os.fsync(file.fileno())
    return outcome


def _windows(answering: Answering, source: Path, done: set[str], outcome: Outcome) -> Iterator[list[Question]]:
    """Yields the questions that are not answered yet, several batches together; counts rejected rows."""
    questions: list[Question] = []
    for row in read_rows(source, str(source)):
        if isinstance(row, Row) and answering.digest(row) in done:
            continue
        question = row if isinstance(row, RejectedRow) else answering.question(row)
        if isinstance(question, RejectedRow):
            outcome.rejected.append(question)
            continue
        questions.append(question)
        if len(questions) == answering.batch_size * _BATCHES_AT_ONCE:
            yield questions
            questions = []
    if questions:
        yield questions


def _question_of(record: Mapping[str, Any]) -> Conversation | str:
    """Returns the chat of a row up to the answer, or a text to continue."""
    key = next((key for key in (*_CHATS, "prompt", "question", "instruction", "text") if key in record), None)
    if key is None:
        names = ", ".join(map(str, record)) or "none"
        raise UnusableValue(f"no question: expected 'messages', 'prompt' or 'text'; its keys are {names}")
    if key == "text":
        return text_of(record, "text")
    if key == "instruction" and record.get("input"):
        chat = chat_of(turns_of(f"{text_of(record, key)}\n\n{text_of(record, 'input')}", "user", key), record)
    else:
        chat = chat_of(turns_of(record[key], "user", key), record)
    if chat.contains_images() or any(has_media(record.get(name)) for name in ("image", "images")):
        raise UnusableValue("has images, which `oumi infer` does not support yet")
    if chat.messages[-1].role == Role.ASSISTANT:
        raise UnusableValue("its last message is an answer already; the last one must be a question")
    return led_by_system(chat, record)  # type: ignore[no-any-return]  # a chat stays a chat


def _opened(target: Path) -> IO[bytes]:
    """Returns the file of answers, opened and locked for this process."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("a+b")
        lock(file.fileno(), target, waits=False)
    except BlockingIOError:
        raise OutputError(f"{target}: another process is writing it") from None
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from error
    return file


def _done(file: IO[bytes], target: Path, digests: set[str]) -> set[str]:
    """Returns the digests of the questions that a file answers; drops a last line that is not complete.

    Raises:
        ConfigError: It has anything else; it is left as it was.
    """
    file.seek(0)
    *lines, rest = file.read().split(b"\n")
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line)[PROVENANCE]["digest"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(_not_an_answer(target, number)) from None
    if rest and not _is_begun(rest):
        raise ConfigError(_not_an_answer(target, len(lines) + 1))
    if others := [digest for digest in found if digest not in digests]:
        raise ConfigError(
            f"{target} has {len(others)} answers to other rows, of another model or with other settings; "
            "name another output file, or delete it"
        )
    file.truncate(file.tell() - len(rest))  # only now that the file is known to hold answers
    return set(found)


def _is_begun(rest: bytes) -> bool:
    """Returns True if a last line without an end is the beginning of an answer, of a process that was killed."""
    try:
        return PROVENANCE in json.loads(rest)  # complete but for its end
    except (ValueError, TypeError):
        return rest[:2] in (b"{", b'{"')


def _not_an_answer(target: Path, number: int) -> str:
    return f"{target}:{number}: not an answer of `oumi infer`; name another output file"


def _line(row: Mapping[str, Any]) -> bytes:
    """Returns a row as a line of JSON; raises ValueError or TypeError for a value that JSON does not have."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_json) + "\n").encode()


def _as_json(value: Any) -> str:
    """Returns a date or a time, which Parquet files have, as text."""
    if isinstance(value, date | time):
        return value.isoformat()
    raise UnusableValue(f"has a value that JSON cannot store, of type {type(value).__name__}")


def _seed(seed: int, row: Row) -> int:
    """Returns the seed of the answer to a row."""
    digest = hashlib.sha256(f"{seed} {row.source.line}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
