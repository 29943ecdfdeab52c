# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a chat are trained: found by rendering it up to each turn, never by searching for strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.templates import Template, TemplateError
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import BadRow, Completion, Example, Row, Source

Span = tuple[int, int]
"""First character, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text, and the parts of it that are trained."""

    text: str
    spans: tuple[Span, ...]
    source: Source
    is_chat: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """An example that fits the model, and how much of the row did not."""

    example: Example
    cut_tokens: int
    cut_targets: int


class Undecided(Exception):  # noqa: N818  it says what a row is
    """The template does not tell which part of the text a turn is."""


class Renderer:
    """Makes examples of rows."""

    def __init__(self, tokenizer: Any, template: Template, train_on: str, max_length: int | None) -> None:
        """Takes how rows are rendered, and what of them is trained.

        Args:
            tokenizer: Must be a fast one, which tells which characters a token covers.
            template: Writes chats as text.
            train_on: `all`, `all_assistant_turns` or `final_assistant_turn`.
            max_length: Tokens after which a row is cut; None cuts none.
        """
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path}: only fast tokenizers tell which text a token covers")
        self.tokenizer = tokenizer
        self.template = template
        self.train_on = train_on
        self.max_length = max_length

    def render(self, row: Row) -> Rendered | BadRow:
        """Returns a row as text with the spans that are trained."""
        try:
            is_completion = isinstance(row.value, Completion)
            made = self._completion(row.value, row.source) if is_completion else self._chat(row.value, row.source)
            made.text.encode()
            return made
        except TemplateError as error:
            return BadRow(row.source, f"the chat template refuses it: {error}")
        except Undecided as error:
            return BadRow(row.source, str(error))
        except UnicodeEncodeError:
            return BadRow(row.source, "holds half of a character (a lone surrogate)")

    def tokenise(self, batch: Sequence[Rendered]) -> Iterator[Cut | BadRow]:
        """Yields the rows as tokens, cut to the model's length."""
        chats = [one for one in batch if one.is_chat]
        others = [one for one in batch if not one.is_chat]
        made = {id(one): cut for part in (chats, others) for one, cut in self._encode(part)}
        yield from (made[id(one)] for one in batch)

    def _encode(self, rows: Sequence[Rendered]) -> Iterator[tuple[Rendered, Cut | BadRow]]:
        if not rows:
            return
        encodings = self.tokenizer(
            [one.text for one in rows],
            # A chat template writes every special token itself, at inference too.
            add_special_tokens=not rows[0].is_chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for one, ids, offsets in zip(rows, encodings["input_ids"], encodings["offset_mapping"], strict=True):
            tokens = np.asarray(ids, dtype=np.int32)
            yield one, self._cut(one, tokens, self._targets(one, np.asarray(offsets).reshape(-1, 2)))

    def _targets(self, row: Rendered, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns which tokens cover a character that is trained.

        A token across the border of prompt and answer is trained: the ids are those of the whole text, whose
        answer it begins. (A prompt of inference ends before it, so a template should end its prompts where
        tokens do: after a special token, a newline, or a word.)
        """
        if self.train_on == "all":
            return np.ones(len(offsets), dtype=np.bool_)
        starts, ends = offsets[:, 0], offsets[:, 1]
        is_target = np.zeros(len(offsets), dtype=np.bool_)
        for first, last in row.spans:
            is_target |= (starts < last) & (ends > first)
        return is_target

    def _cut(self, row: Rendered, tokens: npt.NDArray[np.int32], is_target: npt.NDArray[np.bool_]) -> Cut | BadRow:
        length = self.max_length or len(tokens)
        kept, kept_targets = tokens[:length], is_target[:length]
        if not kept_targets[1:].any():
            if is_target.any():
                return BadRow(row.source, f"every trained token lies beyond model_max_length {length}")
            return BadRow(row.source, "no token is trained")
        if self.train_on != "all" and is_target.all():
            return BadRow(row.source, "every token is trained: nothing stands before the answer")
        cut = max(len(tokens) - length, 0)
        return Cut(Example(kept, kept_targets, row.source), cut, int(is_target[length:].sum()))

    def _completion(self, value: Completion, source: Source) -> Rendered:
        text = value.prompt + value.completion + (self.tokenizer.eos_token or "")
        return Rendered(text, ((len(value.prompt), len(text)),), source, is_chat=False)

    def _chat(self, chat: Conversation, source: Source) -> Rendered:
        messages = chat.messages
        if not messages:
            raise Undecided("the conversation is empty")
        text = self.template.render(messages)
        turns = [i for i, one in enumerate(messages) if one.role == Role.ASSISTANT]
        if self.train_on == "final_assistant_turn":
            turns = turns[-1:]
        spans = tuple(self._span(chat, i, text) for i in turns) if self.train_on != "all" else ((0, len(text)),)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "turns follow each other"
        return Rendered(text, spans, source, is_chat=True)

    def _span(self, chat: Conversation, turn: int, text: str) -> Span:
        """Returns where an answer begins, after the prompt of inference, and where its end mark ends."""
        messages = chat.messages
        upto = text if turn == len(messages) - 1 else self.template.render(messages[: turn + 1])
        if not text.startswith(upto):
            raise Undecided(
                f"turn {turn}: the chat template writes it differently once others follow; "
                "set data.train.train_target: FINAL_ASSISTANT_TURN to train the last answer alone"
            )
        start = self._start(messages, turn, upto)
        answer = messages[turn].content.strip()
        end = len(upto.rstrip())  # white space after the end mark is never generated
        if answer not in upto[max(start - len(answer), 0) :]:  # its first words may be those that the prompt ends with
            raise Undecided(f"turn {turn}: the chat template changes or drops its text")
        return start, max(end, start)

    def _start(self, messages: Sequence[Any], turn: int, upto: str) -> int:
        if not turn:
            return self._end_of_header(upto)
        prompt = self.template.render(list(messages[:turn]), add_generation_prompt=True)
        if upto.startswith(prompt):
            return len(prompt)
        # The prompt of inference holds more than the finished chat does, such as an opened thought.
        before = self.template.render(list(messages[:turn]))
        common = next((i for i, (a, b) in enumerate(zip(prompt, upto, strict=False)) if a != b), len(upto))
        if not upto.startswith(before) or common < len(before):
            raise Undecided(f"turn {turn}: the chat template gives no prompt that the finished chat begins with")
        # The answer may begin as that thought does: `<b>` and `<think>`.
        answer = upto.rfind(messages[turn].content.strip())
        return min(common, answer) if answer >= len(before) else common

    def _end_of_header(self, upto: str) -> int:
        """Returns where an answer begins that nothing stands before: after what opens any answer."""
        question = [Message(role=Role.USER, content="?")]
        header = self.template.render(question, add_generation_prompt=True).removeprefix(self.template.render(question))
        return upto.index(header) + len(header) if header in upto else 0
