# SPDX-License-Identifier: Apache-2.0
"""Which text of a row is trained: found by rendering a chat up to each turn, never by searching for strings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from oumi.core.data.templates import Template, TemplateError
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import BadRow, Completion, Judged, Preference, Row, Source, Text

Span = tuple[int, int]
"""First character, and the one after the last."""

MARKS = ("\ufdd0", "\ufdd1")
"""Stand around what looks like a control token, but is text. They are no characters, and never will be."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the parts of it that are trained."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text: one document, or several that do not see each other."""

    documents: tuple[Document, ...]
    source: Source
    is_chat: bool
    """The template wrote every special token."""
    may_split: bool = False
    """A text of any length, which is learned in parts."""
    is_pair: bool = False
    """Two answers to compare, neither of which is of use alone."""


class Undecided(Exception):  # noqa: N818  it says what a row is
    """The template does not tell which part of the text a turn is."""


class Renderer:
    """Writes rows as text, and says what of it is trained."""

    def __init__(self, tokenizer: Any, template: Template, train_on: str) -> None:
        """Takes how rows are rendered, and what of them is trained.

        Args:
            tokenizer: Tells which strings are control tokens, and which one ends a text.
            template: Writes chats as text.
            train_on: `all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts.
        """
        self.template = template
        self.train_on = train_on
        self._eos = tokenizer.eos_token or ""
        self._control = control_tokens(tokenizer)

    def render(self, row: Row) -> Rendered | BadRow:
        """Returns a row as text with the spans that are trained."""
        try:
            made = self._rendered(row.value, row.source)
            for document in made.documents:
                document.text.encode()
            return made
        except TemplateError as error:
            return BadRow(row.source, f"the chat template refuses it: {error}")
        except Undecided as error:
            return BadRow(row.source, str(error))
        except UnicodeEncodeError:
            return BadRow(row.source, "holds half of a character (a lone surrogate)")

    def _rendered(self, value: Any, source: Source) -> Rendered:
        if isinstance(value, Conversation):
            return Rendered(self._chat(value, self._taught(value)), source, is_chat=True)
        if isinstance(value, Completion):
            return Rendered((self._completion(value),), source, is_chat=False)
        if isinstance(value, Text):
            text = value.text + self._eos
            return Rendered((Document(text, ((0, len(text)),)),), source, is_chat=False, may_split=True)
        if isinstance(value, Preference):
            return self._preference(value, source)
        if isinstance(value, Judged):
            return self._rendered(value.value, source)
        if self.train_on != "nothing":
            raise Undecided("a prompt without an answer, so there is nothing to learn")
        chat = Conversation(messages=list(value.messages))
        asked = _marked(chat, self._control) if self._control else chat
        text = self.template.render(asked.messages, add_generation_prompt=True)
        return Rendered((Document(text, ()),), source, is_chat=True)

    def _completion(self, value: Completion) -> Document:
        text = value.prompt + value.completion + self._eos
        return Document(text, ((len(value.prompt), len(text)),))

    def _preference(self, value: Preference, source: Source) -> Rendered:
        """Returns the better answer and the worse one, each with what leads to it."""
        if isinstance(value.chosen, Completion) and isinstance(value.rejected, Completion):
            pair = (self._completion(value.chosen), self._completion(value.rejected))
            return Rendered(pair, source, is_chat=False, is_pair=True)
        assert isinstance(value.chosen, Conversation), "both are of one kind"
        assert isinstance(value.rejected, Conversation), "both are of one kind"
        pairs = zip(value.chosen.messages, value.rejected.messages, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
        documents = []
        for chat in (value.chosen, value.rejected):
            answers = [i for i, one in enumerate(chat.messages) if one.role == Role.ASSISTANT and i >= shared]
            documents += self._chat(chat, answers[-1:])[-1:]
        return Rendered(tuple(documents), source, is_chat=True, is_pair=True)

    def _taught(self, chat: Conversation) -> list[int]:
        """Returns the turns that are trained."""
        turns = [i for i, one in enumerate(chat.messages) if one.role == Role.ASSISTANT]
        chosen = [i for i in turns if chat.messages[i].train]
        if chosen or any(chat.messages[i].train is False for i in turns):
            turns = [i for i in turns if chat.messages[i].train is not False]
        if self.train_on == "final_assistant_turn":
            turns = turns[-1:]
        return turns

    def _chat(self, chat: Conversation, turns: Sequence[int]) -> tuple[Document, ...]:
        """Returns a chat as one document, or as several where the template rewrites earlier turns.

        Such a turn is trained as it stands when the model says it: at the end of the chat so far.
        """
        if not chat.messages:
            raise Undecided("the conversation is empty")
        for i, one in enumerate(chat.messages):
            if one.contains_images():
                raise Undecided(f"turn {i}: holds a picture, and training on pictures is not built yet")
        if not turns and self.train_on != "all":
            raise Undecided("no turn of it is to be trained")
        writer = _Writer(self.template, _marked(chat, self._control) if self._control else chat)
        text = writer.whole()
        if self.train_on == "all":
            return (Document(text, ((0, len(text)),)),)
        texts, spans = [text], {text: list[Span]()}
        for turn in reversed(turns):
            upto = writer.upto(turn)
            home = next((one for one in texts if one.startswith(upto)), None)
            if home is None:
                texts.append(home := upto)
                spans[home] = []
            spans[home].insert(0, writer.span(turn, upto))
        kept = [one for one in reversed(texts) if spans[one]]
        assert all(a[1] <= b[0] for one in kept for a, b in pairwise(spans[one])), "turns follow each other"
        return tuple(Document(one, tuple(spans[one])) for one in kept)


class _Writer:
    """One chat, and what the template makes of parts of it."""

    def __init__(self, template: Template, chat: Conversation) -> None:
        self._template = template
        self._messages = chat.messages
        self._tools = chat.tools
        self._rendered: dict[tuple[int, bool], str] = {}

    def whole(self) -> str:
        return self._render(len(self._messages))

    def upto(self, turn: int) -> str:
        """Returns the chat with `turn` as its last one."""
        return self._render(turn + 1)

    def span(self, turn: int, upto: str) -> Span:
        """Returns where an answer begins, after the prompt of inference, and where its end mark ends."""
        start = self._start(turn, upto)
        message = self._messages[turn]
        answer = message.text.strip()
        end = len(upto.rstrip())  # white space after the end mark is never generated
        if answer not in upto[max(start - len(answer), 0) :]:  # its first words may be those that the prompt ends with
            raise Undecided(f"turn {turn}: the chat template changes or drops its text")
        for what, text in (("reasoning_content", message.reasoning_content), *_called(message)):
            if text and text.strip() not in upto:
                raise Undecided(f"turn {turn}: the chat template does not write its {what}")
        return start, max(end, start)

    def _render(self, num_messages: int, add_generation_prompt: bool = False) -> str:
        key = (num_messages, add_generation_prompt)
        if key not in self._rendered:
            self._rendered[key] = self._template.render(
                self._messages[:num_messages], add_generation_prompt, self._tools
            )
        return self._rendered[key]

    def _start(self, turn: int, upto: str) -> int:
        if not turn:
            return self._end_of_header(upto)
        prompt = self._render(turn, add_generation_prompt=True)
        if upto.startswith(prompt):
            return len(prompt)
        # The prompt of inference holds more than the finished chat does, such as an opened thought.
        before = self._render(turn)
        common = next((i for i, (a, b) in enumerate(zip(prompt, upto, strict=False)) if a != b), len(upto))
        if not upto.startswith(before) or common < len(before):
            raise Undecided(f"turn {turn}: the chat template gives no prompt that the finished chat begins with")
        # The answer may begin as that thought does: `<b>` and `<think>`.
        answer = upto.rfind(self._messages[turn].text.strip())
        return min(common, answer) if answer >= len(before) else common

    def _end_of_header(self, upto: str) -> int:
        """Returns where an answer begins that nothing stands before: after what opens any answer."""
        question = [Message(role=Role.USER, content="?")]
        asked = self._template.render(question, add_generation_prompt=True)
        header = asked.removeprefix(self._template.render(question))
        return upto.index(header) + len(header) if header in upto else 0


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Returns a pattern of the tokens that steer a model, None if there are none."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(one) for one in added if one.special} | set(tokenizer.all_special_tokens)
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _marked(chat: Conversation, control: re.Pattern[str]) -> Conversation:
    """Returns the chat with marks around control tokens that stand in what is not the assistant's own."""
    messages = [
        one.model_copy(update={"content": control.sub(_mark, one.text)})
        if one.role != Role.ASSISTANT and isinstance(one.content, str) and control.search(one.text)
        else one
        for one in chat.messages
    ]
    return chat.model_copy(update={"messages": messages}) if messages != chat.messages else chat


def _mark(found: re.Match[str]) -> str:
    return f"{MARKS[0]}{found[0]}{MARKS[1]}"


def _called(message: Message) -> list[tuple[str, str]]:
    return [("tool call", one.function.name) for one in message.tool_calls or ()]
