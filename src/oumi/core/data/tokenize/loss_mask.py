# SPDX-License-Identifier: Apache-2.0
"""Renders rows as text, and marks which characters of it are trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

from oumi.core.data.records.images import IMAGE_MARK
from oumi.core.data.tokenize.chat_template import Template, TemplateError
from oumi.core.data.tokenize.sentinels import Span, UnusableRow, check_parts
from oumi.core.data.tokenize.turns import AnsweredChat, ChatRenderer, EndTokens, ends_of_answers, without_tool_results
from oumi.core.types.answers import NO_LIMITS, AnswerLimits
from oumi.core.types.conversation import ContentItem, Conversation, Role
from oumi.core.types.example import Completion, Judged, Preference, RejectedRow, Row, Source, Text

MARKS = ("\ufdd0", "\ufdd1")
"""Written around text that looks like a control token. They are noncharacters of Unicode: no text should use them."""

_NO_EOS = "the tokenizer has no end-of-text token, so the model does not learn where to stop"
_NO_END = "the chat template ends answers with no token of their own, so the model does not learn where to stop"
_DROPPED = {
    "reasoning_content": "the chat template drops thoughts of earlier turns, so they are not trained",
    "text": "the chat template drops what the assistant says beside a tool call, so it is not trained",
}
"""Remarks on the kinds of parts that a template may drop."""


@dataclass(frozen=True)
class TokenizeSpec:
    """Which tokens are trained, and what happens to rows that are too long."""

    train_on: str
    """`all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts."""
    max_length: int | None = None
    """Largest number of tokens of a row; None sets no limit."""
    truncation: str | None = None
    """`right`, `left`, `reject` or `split`; None depends on the kind of row."""
    tool_results: tuple[str, str] | None = None
    """Strings that open and close the results of tools within answers, which are not trained."""
    answer_limits: AnswerLimits = NO_LIMITS
    """Largest lengths of the prompt and of the answer of a document."""
    unpairs: bool = False
    """Makes two judged answers of each preference."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the parts of it that are trained."""

    text: str
    spans: tuple[Span, ...]
    images: tuple[ContentItem, ...] = ()
    """All images of the chat; an earlier turn's text has marks for the first of them only."""
    remarks: tuple[str, ...] = ()
    """What the user should know of it, though it can be trained."""


@dataclass
class _ChatDocument:
    """A rendered chat, and the answers that are trained in it."""

    text: str
    turn: int
    """Its last turn."""
    answered: AnsweredChat | None = None
    """The chat up to the answer that it ends with; None for the whole chat."""
    answers: dict[int, AnsweredChat] = field(default_factory=dict)
    """The chat up to each answer that is trained, by its turn."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text: one document, or several that do not attend to each other."""

    documents: tuple[Document, ...]
    source: Source
    has_specials: bool
    """The text contains every special token, as chat templates write them; the tokenizer adds none."""
    may_split: bool = False
    """The text may be longer than the model's length, and is then trained in parts."""
    is_pair: bool = False
    """The documents are two answers to compare, which must stay together."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that the training method needs beside the text, by name."""


class Renderer:
    """Renders rows as text, and marks which parts of it are trained.

    In a chat, only the assistant can write control tokens: in other messages, a string that looks like one is text. In
    completions and plain texts it is a control token, because people write whole chats into those.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        train_on: str,
        tool_results: tuple[str, str] | None = None,
        image_mark: str | None = None,
    ) -> None:
        """Sets how rows are rendered, and which parts of them are trained.

        Args:
            tokenizer: Its control tokens and end-of-text token are used.
            template: Renders chats.
            train_on: `all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts.
            tool_results: Strings that open and close the results of tools within answers, which are not trained.
            image_mark: String with which the template marks an image; None if images are not supported.
        """
        self.template = template
        self.train_on = train_on
        self._tool_results = tool_results
        self._image_mark = image_mark
        self._eos, self._pad = tokenizer.eos_token or "", tokenizer.pad_token or ""
        self._control = control_tokens(tokenizer)
        self._end_tokens = EndTokens(self._control, self._eos)
        self._remedies: dict[str, str] = {}
        self._ends: tuple[str, ...] | None = None  # of answers; None until it is needed

    def render(self, row: Row) -> Rendered | RejectedRow:
        """Returns a row as text with the spans that are trained, or the reason why it cannot be trained."""
        try:
            rendered = self._render(row.value, row.source)
            for document in rendered.documents:
                document.text.encode()  # fails on a lone surrogate, which no tokenizer takes
            return rendered
        except TemplateError as error:
            return RejectedRow(row.source, f"the chat template refuses it: {error}")
        except UnusableRow as error:
            return RejectedRow(row.source, str(error))
        except UnicodeEncodeError:
            return RejectedRow(row.source, "holds half of a character (a lone surrogate)")

    def _render(self, value: Any, source: Source) -> Rendered:
        if isinstance(value, Conversation):
            turns = [
                i
                for i, message in enumerate(value.messages)
                if message.role == Role.ASSISTANT and message.train is not False
            ]
            if self.train_on == "final_assistant_turn":
                turns = turns[-1:]
            return Rendered(self._chat(value, turns), source, has_specials=True)
        if isinstance(value, Completion):
            return Rendered((self._completion(value),), source, has_specials=False)
        if isinstance(value, Text):
            text = self._ended(value.text) if value.has_end else value.text
            document = Document(text, ((0, len(text)),), remarks=() if self._eos or not value.has_end else (_NO_EOS,))
            return Rendered((document,), source, has_specials=not value.has_specials, may_split=True)
        if isinstance(value, Preference):
            return self._preference(value, source)
        if isinstance(value, Judged):
            return replace(self._render(value.value, source), columns={"label": value.is_good})
        if self.train_on != "nothing":
            raise UnusableRow("a prompt without an answer, so there is nothing to learn")
        # What is left is a prompt, which the method answers itself.
        prompt = Conversation(messages=list(value.messages))
        self._check_no_images(prompt, is_supported=False)
        guarded = _guarded(prompt, self._control) if self._control else prompt
        text = self.template.render(guarded.messages, add_generation_prompt=True)
        return Rendered((Document(text, ()),), source, has_specials=True, columns=value.columns)

    def _completion(self, value: Completion) -> Document:
        text = self._ended(value.prompt + value.completion)
        return Document(text, ((len(value.prompt), len(text)),), remarks=() if self._eos else (_NO_EOS,))

    def _ended(self, text: str) -> str:
        """Returns a text with one end-of-text token; rows may bring it."""
        return _without_ends(text, (self._eos,)) + self._eos

    def _preference(self, value: Preference, source: Source) -> Rendered:
        """Returns the chosen and the rejected answer, each with its prompt."""
        if isinstance(value.chosen, Completion) and isinstance(value.rejected, Completion):
            pair = (self._completion(value.chosen), self._completion(value.rejected))
            return Rendered(pair, source, has_specials=False, is_pair=True)
        assert isinstance(value.chosen, Conversation), "both answers have the same type"
        assert isinstance(value.rejected, Conversation), "both answers have the same type"
        # An answer after another prompt would be compared for what stands before it.
        if value.chosen.messages[:-1] != value.rejected.messages[:-1]:
            raise UnusableRow("'chosen' and 'rejected' differ before their last turn: they answer different prompts")
        documents = list[Document]()
        for chat in (value.chosen, value.rejected):
            last = len(chat.messages) - 1
            # The last document of a chat is the one that contains its last turn.
            documents += self._chat(chat, [last] if chat.messages[last].role == Role.ASSISTANT else [])[-1:]
        if documents[0].text == documents[1].text:
            raise UnusableRow("'chosen' and 'rejected' are the same, so there is nothing to learn")
        return Rendered(tuple(documents), source, has_specials=True, is_pair=True)

    def _chat(self, chat: Conversation, turns: Sequence[int]) -> tuple[Document, ...]:
        """Returns a chat as one document, or as several if the template rewrites earlier turns.

        Some templates drop the thoughts of earlier turns, for instance. Such a turn is trained in its own document,
        which ends with it, since that is the text that the model sees at inference.
        """
        if not chat.messages:
            raise UnusableRow("the conversation is empty")
        self._check_no_images(chat)
        if not turns and self.train_on != "all":
            raise UnusableRow("has no turn to train")
        chat = self._without_ends_of_answers(chat)
        # Render it once as a whole, and verify that the template wrote everything.
        guarded = _guarded(chat, self._control) if self._control else chat
        renderer = ChatRenderer(self.template, guarded, self._end_tokens)
        text = renderer.full_text()
        self._check_marks(text, chat, is_guarded=guarded is not chat)
        images = tuple(item for message in chat.messages for item in message.image_content_items)
        self._check_images(text, chat, len(images))
        last, roles = len(chat.messages) - 1, [message.role for message in chat.messages]
        if self.train_on == "all":
            dropped = check_parts(renderer.written(last), {}, roles)
            remarks = tuple(_DROPPED[kind] for kind in sorted(dropped))
            return (Document(text, tuple(self._all_but_flagged(renderer, chat, text)), images, remarks),)
        # Find the document of each turn that is trained.
        documents = [_ChatDocument(text, last)]
        # From the last turn back, so that each turn is trained in the longest text that contains it.
        for turn in reversed(turns):
            answered = renderer.answered(turn)
            document = next((document for document in documents if document.text.startswith(answered.text)), None)
            if document is None:
                documents.append(document := _ChatDocument(answered.text, turn, answered))
            document.answers[turn] = answered
        # In the order of the turns; a text without a target, such as the whole chat may be, is dropped.
        documents = [document for document in reversed(documents) if document.answers]
        for document in documents:
            spans = {turn: answered.span for turn, answered in document.answers.items()}
            check_parts(renderer.written(document.turn, document.answered), spans, roles)
        return tuple(self._document(document, guarded, images) for document in documents)

    def _without_ends_of_answers(self, chat: Conversation) -> Conversation:
        """Returns a chat without the end tokens that its answers bring, since the template writes them."""
        if self._ends is None:
            ends = ends_of_answers(self.template, self._end_tokens)
            self._ends = (*ends, self._eos, self._pad) if ends else ()
        messages = [
            message.model_copy(update={"content": text})
            if message.role == Role.ASSISTANT
            and isinstance(message.content, str)
            and (text := _without_ends(message.content, self._ends)) not in ("", message.content)
            else message
            for message in chat.messages
        ]
        is_same = all(a is b for a, b in zip(messages, chat.messages, strict=True))
        return chat if is_same else chat.model_copy(update={"messages": messages})

    def _document(self, document: _ChatDocument, chat: Conversation, images: tuple[ContentItem, ...]) -> Document:
        spans, remarks = list[Span](), dict[str, None]()  # in order, each once
        for turn, answered in sorted(document.answers.items()):
            span = answered.span
            spans += (
                [span] if self._tool_results is None else without_tool_results(document.text, span, self._tool_results)
            )
            if not self._end_tokens.is_ended(document.text[: span[1]]) or self._control is None:
                remarks[_NO_END] = None
            if answered.unmet_prompt:
                remarks[self._unmet_prompt(chat, turn, answered)] = None
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), "turns follow each other"
        return Document(document.text, tuple(spans), images, tuple(remarks))

    def _unmet_prompt(self, chat: Conversation, turn: int, answered: AnsweredChat) -> str:
        """Returns the remark that an answer is trained behind another prompt than that of inference, and a remedy."""
        prompt = answered.unmet_prompt
        if prompt not in self._remedies:
            self._remedies[prompt] = (
                "write a thought into each answer ('reasoning_content'), or set another model.chat_template"
            )
            # Variables with which templates choose whether the model thinks.
            for name, value in product(("enable_thinking", "thinking"), (False, True)):
                try:
                    other = self.template.render(chat.messages[:turn], True, chat.tools, {name: value})
                except TemplateError:
                    continue
                if answered.text.startswith(other):
                    self._remedies[prompt] = f"pass {name}={value} to the chat template at inference"
                    break
        return (
            f"at inference, the chat template ends its prompt with {prompt!r}, which the answers are not trained "
            f"behind; {self._remedies[prompt]}"
        )

    def _all_but_flagged(self, renderer: ChatRenderer, chat: Conversation, text: str) -> Iterator[Span]:
        """Yields the spans between messages with `train: false`, for a chat that is trained as a whole."""
        start = 0
        for turn, message in enumerate(chat.messages):
            if message.train is False:
                answered = renderer.answered(turn)
                if not text.startswith(answered.text):
                    raise UnusableRow(f"turn {turn}: has `train: false`, but the chat template rewrites it")
                first, last = answered.span
                yield start, first
                start = last
        yield start, len(text)

    def _check_marks(self, text: str, chat: Conversation, is_guarded: bool) -> None:
        """Raises UnusableRow if a text contains other marks than ours, or the template changed ours."""
        if not is_guarded and MARKS[0] not in text and MARKS[1] not in text:
            return
        control = self._control.pattern if self._control is not None else "(?!)"  # matches nothing
        rest = re.sub(f"{MARKS[0]}(?:{control}){MARKS[1]}", "", text)
        # The assistant's own words get no marks from us: a pair there looks like ours, but is the row's.
        for message in chat.messages:
            if message.role == Role.ASSISTANT:
                calls = "".join(call.function.arguments for call in message.tool_calls or ())
                rest += f"{message.text}{message.reasoning_content}{calls}"
        if MARKS[0] in rest or MARKS[1] in rest:
            raise UnusableRow("holds U+FDD0 or U+FDD1, which are not characters")
        # `tojson` may write a mark as an escape, which the encoder would not see.
        if is_guarded and re.search(rf"\\ufdd0(?:{control})\\ufdd1", rest):
            raise UnusableRow("the chat template escapes what looks like a control token")

    def _check_no_images(self, chat: Conversation, is_supported: bool = True) -> None:
        """Raises UnusableRow for a chat with an image, unless the model and the kind of row support it."""
        for turn, message in enumerate(chat.messages):
            if message.contains_images() and not (is_supported and self._image_mark is not None):
                raise UnusableRow(f"turn {turn}: holds an image, which the model or this trainer does not support")

    def _check_images(self, text: str, chat: Conversation, num_images: int) -> None:
        """Raises UnusableRow for a mark without an image, or unless the template writes a mark for each image."""
        if self._image_mark is None:
            return
        for turn, message in enumerate(chat.messages):
            for mark in (IMAGE_MARK, self._image_mark):
                if mark in message.text:
                    raise UnusableRow(f"turn {turn}: writes {mark} for an image, but the row has no image for it")
        # After one of our marks, it is text of a tool's definition that looks like an image mark.
        count = len(re.findall(rf"(?<!{MARKS[0]}){re.escape(self._image_mark)}", text))
        if count != num_images:
            raise UnusableRow(f"the chat template marks {count} images as {self._image_mark}: of {num_images}")


def _without_ends(text: str, ends: tuple[str, ...]) -> str:
    """Returns a text without the tokens at its end that end it, nor the white space behind them."""
    while end := next((end for end in ends if end and text.rstrip().endswith(end)), ""):
        text = text.rstrip().removesuffix(end)
    return text


def control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """Returns a pattern of the special tokens of a tokenizer, None if it has none."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
    # The longest first: in an alternation the first match wins, and one token may be the beginning of another.
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _guarded(chat: Conversation, control: re.Pattern[str]) -> Conversation:
    """Returns the chat with marks around control tokens that are not the assistant's own.

    Messages of system, user and tools, and the definitions of tools, are text. In the assistant's answers, thoughts and
    calls, a control token stays one: the model writes it, and data sets write thoughts and calls with such tokens.
    """
    messages = [
        message.model_copy(update={"content": _marked(message.content, control)})
        if message.role != Role.ASSISTANT and control.search(message.text)
        else message
        for message in chat.messages
    ]
    tools = [
        tool.model_copy(update={"function": _marked(tool.function, control)})
        if control.search(str(tool.function))
        else tool
        for tool in chat.tools or ()
    ]
    # The same object means "no marks": most chats need none, and are checked faster.
    if all(a is b for a, b in zip([*messages, *tools], [*chat.messages, *(chat.tools or ())], strict=True)):
        return chat
    return chat.model_copy(update={"messages": messages, "tools": tools or chat.tools})


def _marked(value: Any, control: re.Pattern[str]) -> Any:
    """Returns a value with marks around the control tokens in any text within it."""
    if isinstance(value, str):
        return control.sub(lambda match: f"{MARKS[0]}{match[0]}{MARKS[1]}", value)
    if isinstance(value, list):
        return [_marked(item, control) for item in value]
    if isinstance(value, dict):
        return {_marked(key, control): _marked(item, control) for key, item in value.items()}
    if isinstance(value, ContentItem) and value.is_text():
        return value.model_copy(update={"content": _marked(value.content, control)})
    return value
