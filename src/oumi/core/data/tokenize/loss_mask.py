# SPDX-License-Identifier: Apache-2.0
"""Which text of a row is trained: known from rendering a chat up to each turn, not from a search for strings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from oumi.core.data.tokenize.chat_template import Template, TemplateError
from oumi.core.data.tokenize.turns import Ends, Span, Undecided, Writer, without_tool_results
from oumi.core.types.conversation import ContentItem, Conversation, Message, Role
from oumi.core.types.example import Completion, Judged, Preference, RejectedRow, Row, Source, Text

MARKS = ("\ufdd0", "\ufdd1")
"""Stand around what looks like a control token, but is text. They are no characters, and never will be."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the parts of it that are trained."""

    text: str
    spans: tuple[Span, ...]
    images: tuple[ContentItem, ...] = ()
    """Of the whole chat; the text marks the first of them, or all."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text: one document, or several that do not see each other."""

    documents: tuple[Document, ...]
    source: Source
    has_specials: bool
    """Every special token is written already, as chat templates do; the tokenizer adds none."""
    may_split: bool = False
    """A text of any length, which is learned in parts."""
    is_pair: bool = False
    """Two answers to compare, neither of which is of use alone."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that go with the row to its method, by name."""


class Renderer:
    """Writes rows as text, and says what of it is trained.

    What looks like a control token in a chat is text, unless the assistant says it. In completions and plain texts it
    is what the tokenizer takes it for: people write whole chats into those.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        train_on: str,
        tool_results: tuple[str, str] | None = None,
        image_mark: str | None = None,
    ) -> None:
        """Takes how rows are rendered, and what of them is trained.

        Args:
            tokenizer: Tells which strings are control tokens, and which one ends a text.
            template: Writes chats as text.
            train_on: `all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts.
            tool_results: What opens and closes the results of tools that stand within answers, and are not trained.
            image_mark: What stands for an image in a text; None where none is taken.
        """
        self.template = template
        self.train_on = train_on
        self._tool_results = tool_results
        self._image_mark = image_mark
        self._eos = tokenizer.eos_token or ""
        self._control = control_tokens(tokenizer)
        self._ends = Ends(self._control, self._eos)
        self._writes_tools = False

    def render(self, row: Row) -> Rendered | RejectedRow:
        """Returns a row as text with the spans that are trained."""
        try:
            made = self._rendered(row.value, row.source)
            for document in made.documents:
                document.text.encode()
            return made
        except TemplateError as error:
            return RejectedRow(row.source, f"the chat template refuses it: {error}")
        except Undecided as error:
            return RejectedRow(row.source, str(error))
        except UnicodeEncodeError:
            return RejectedRow(row.source, "holds half of a character (a lone surrogate)")

    def _rendered(self, value: Any, source: Source) -> Rendered:
        if isinstance(value, Conversation):
            return Rendered(self._chat(value, self._taught(value)), source, has_specials=True)
        if isinstance(value, Completion):
            return Rendered((self._completion(value),), source, has_specials=False)
        if isinstance(value, Text):
            text = value.text + (self._eos if value.has_end else "")
            document = Document(text, ((0, len(text)),))
            return Rendered((document,), source, has_specials=not value.has_specials, may_split=True)
        if isinstance(value, Preference):
            return self._preference(value, source)
        if isinstance(value, Judged):
            return replace(self._rendered(value.value, source), columns={"label": value.is_good})
        if self.train_on != "nothing":
            raise Undecided("a prompt without an answer, so there is nothing to learn")
        chat = Conversation(messages=list(value.messages))
        asked = _marked(chat, self._control) if self._control else chat
        text = self.template.render(asked.messages, add_generation_prompt=True)
        return Rendered((Document(text, ()),), source, has_specials=True, columns=value.columns)

    def _completion(self, value: Completion) -> Document:
        text = value.prompt + value.completion + self._eos
        return Document(text, ((len(value.prompt), len(text)),))

    def _preference(self, value: Preference, source: Source) -> Rendered:
        """Returns the better answer and the worse one, each with what leads to it."""
        if isinstance(value.chosen, Completion) and isinstance(value.rejected, Completion):
            pair = (self._completion(value.chosen), self._completion(value.rejected))
            return Rendered(pair, source, has_specials=False, is_pair=True)
        assert isinstance(value.chosen, Conversation), "both are of one kind"
        assert isinstance(value.rejected, Conversation), "both are of one kind"
        pairs = zip(value.chosen.messages, value.rejected.messages, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
        documents = []
        for chat in (value.chosen, value.rejected):
            answers = [i for i, one in enumerate(chat.messages) if one.role == Role.ASSISTANT and i >= shared]
            documents += self._chat(chat, answers[-1:])[-1:]
        return Rendered(tuple(documents), source, has_specials=True, is_pair=True)

    def _taught(self, chat: Conversation) -> list[int]:
        """Returns the turns that are trained."""
        turns = [i for i, one in enumerate(chat.messages) if one.role == Role.ASSISTANT]
        turns = [i for i in turns if chat.messages[i].train is not False]
        if self.train_on == "final_assistant_turn":
            turns = turns[-1:]
        return turns

    def _check_marks(self, text: str, chat: Conversation, is_guarded: bool) -> None:
        """Raises Undecided if other marks than ours stand in a text, or the template wrote ours in another way."""
        if not is_guarded and MARKS[0] not in text and MARKS[1] not in text:
            return
        control = self._control.pattern if self._control is not None else "(?!)"
        rest = re.sub(f"{MARKS[0]}(?:{control}){MARKS[1]}", "", text)
        rest += "".join(_said(one) for one in chat.messages if one.role == Role.ASSISTANT)  # where none of ours stand
        if MARKS[0] in rest or MARKS[1] in rest:
            raise Undecided("holds U+FDD0 or U+FDD1, which are no characters")
        if is_guarded and re.search(rf"\\ufdd0(?:{control})\\ufdd1", rest):
            raise Undecided("the chat template escapes what looks like a control token")

    def _chat(self, chat: Conversation, turns: Sequence[int]) -> tuple[Document, ...]:
        """Returns a chat as one document, or as several where the template rewrites earlier turns.

        Such a turn is trained as it stands when the model says it: at the end of the chat so far.
        """
        if not chat.messages:
            raise Undecided("the conversation is empty")
        images = self._images(chat)
        if not turns and self.train_on != "all":
            raise Undecided("no turn of it is to be trained")
        guarded = _marked(chat, self._control) if self._control else chat
        writer = Writer(self.template, guarded, self._ends)
        text = writer.whole()
        self._check_marks(text, chat, is_guarded=guarded is not chat)
        if chat.tools and not self._writes_tools:
            self._writes_tools = writer.writes_tools(text)
            if not self._writes_tools:
                raise Undecided("the chat template does not write the tools of the chat")
        writer.check_written(text)
        self._check_images(text, images)
        if self.train_on == "all":
            return (Document(text, tuple(self._all_but_flagged(writer, chat, text)), images),)
        texts, spans = [text], {text: list[Span]()}
        for turn in reversed(turns):
            upto = writer.upto(turn)
            home = next((one for one in texts if one.startswith(upto)), None)
            if home is None:
                texts.append(home := upto)
                spans[home] = []
            span = writer.span(turn, upto)
            parts = [span] if self._tool_results is None else without_tool_results(home, span, self._tool_results)
            spans[home] = [*parts, *spans[home]]
        kept = [one for one in reversed(texts) if spans[one]]
        assert all(a[1] <= b[0] for one in kept for a, b in pairwise(spans[one])), "turns follow each other"
        return tuple(Document(one, tuple(spans[one]), images) for one in kept)

    def _all_but_flagged(self, writer: Writer, chat: Conversation, text: str) -> Iterator[Span]:
        """Yields what of a text is trained where all is: what stands between turns that are not to be trained."""
        begin = 0
        for turn, one in enumerate(chat.messages):
            if one.train is False:
                upto = writer.upto(turn)
                if not text.startswith(upto):
                    raise Undecided(f"turn {turn}: is not to be trained, but the chat template rewrites it")
                first, last = writer.span(turn, upto)
                yield begin, first
                begin = last
        yield begin, len(text)

    def _images(self, chat: Conversation) -> tuple[ContentItem, ...]:
        for i, one in enumerate(chat.messages):
            if self._image_mark is None and one.contains_images():
                raise Undecided(f"turn {i}: holds an image, which the model, or this trainer, does not take")
        return tuple(item for one in chat.messages for item in one.image_content_items)

    def _check_images(self, text: str, images: Sequence[ContentItem]) -> None:
        """Raises Undecided unless the template has marked each image in the text, and nothing else."""
        if self._image_mark is None:
            return
        count = len(re.findall(rf"(?<!{MARKS[0]}){re.escape(self._image_mark)}", text))
        if count != len(images):
            raise Undecided(f"the chat template marks {count} images as {self._image_mark}: of {len(images)}")


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Returns a pattern of the tokens that steer a model, None if there are none."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(one) for one in added if one.special} | set(tokenizer.all_special_tokens)
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _marked(chat: Conversation, control: re.Pattern[str]) -> Conversation:
    """Returns the chat with marks around control tokens that stand in what is not the assistant's own.

    What system, user and tools say, and how tools are defined, is text. In what the assistant says, thinks and calls,
    a control token is one: the model says it, and data sets write thoughts and calls with such tokens.
    """
    messages = [
        one.model_copy(update={"content": _marked_in(one.content, control)})
        if one.role != Role.ASSISTANT and control.search(one.text)
        else one
        for one in chat.messages
    ]
    tools = [
        one.model_copy(update={"function": _marked_in(one.function, control)})
        if control.search(str(one.function))
        else one
        for one in chat.tools or ()
    ]
    if all(a is b for a, b in zip([*messages, *tools], [*chat.messages, *(chat.tools or ())], strict=True)):
        return chat
    return chat.model_copy(update={"messages": messages, "tools": tools or chat.tools})


def _marked_in(value: Any, control: re.Pattern[str]) -> Any:
    """Returns a value with marks around the control tokens in any text of it."""
    if isinstance(value, str):
        return control.sub(lambda found: f"{MARKS[0]}{found[0]}{MARKS[1]}", value)
    if isinstance(value, list):
        return [_marked_in(one, control) for one in value]
    if isinstance(value, dict):
        return {_marked_in(key, control): _marked_in(one, control) for key, one in value.items()}
    if isinstance(value, ContentItem) and value.is_text():
        return value.model_copy(update={"content": _marked_in(value.content, control)})
    return value


def _said(message: Message) -> str:
    calls = "".join(one.function.arguments for one in message.tool_calls or ())
    return f"{message.text}{message.reasoning_content}{calls}"


@dataclass(frozen=True)
class TokenizeSpec:
    """Which tokens are trained, and what becomes of rows that are too long."""

    train_on: str
    """`all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts."""
    max_length: int | None = None
    """Tokens that a row may have; None sets no limit."""
    truncation: str | None = None
    """`right`, `left`, `reject` or `split`; None leaves it to the kind of row."""
    tool_results: tuple[str, str] | None = None
    """What opens and closes the results of tools that stand within answers, and are not trained."""
