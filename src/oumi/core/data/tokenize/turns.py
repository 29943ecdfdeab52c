# SPDX-License-Identifier: Apache-2.0
"""Locates turns in a rendered chat: where each answer begins and ends, and what a template writes around it.

The text is not searched for headers of turns, which a message could contain, too. Instead, the chat is rendered up to
each answer, with and without the prompt of inference, and the texts are compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from oumi.core.data.tokenize.chat_template import Template, TemplateError
from oumi.core.data.tokenize.sentinels import THOUGHT_TAG, Span, UnusableRow, Written, written_parts
from oumi.core.errors import ConfigError, Problem
from oumi.core.log import logger
from oumi.core.types.conversation import Conversation, FunctionCall, Message, Role, ToolCall, ToolDefinition

_MAX_TOKEN_LENGTH = 200
"""Characters of the longest control token, so that only the end of a text is searched."""
_QUESTIONS, _ANSWERS = ("first question", "second question"), ("first answer", "second answer")
_LANDMARKS = {
    "response_template": "before an answer",
    "instruction_template": "before a question",
    "end_of_turn_template": "after an answer",
}
"""Keys of `data.train.collator_kwargs`, and where the chat template should write their strings."""


@dataclass(frozen=True)
class AnsweredChat:
    """A chat up to the end of an answer."""

    text: str
    start: int
    """Where the answer begins, behind the prompt of inference."""
    is_joined: bool = False
    """The text is the prompt of inference with the answer behind it; the template writes a finished chat otherwise."""
    is_raw: bool = False
    """The answer is written as the model says it, with a thought that the template drops from a finished chat."""
    unmet_prompt: str = ""
    """The end of the prompt of inference, if the finished chat does not begin with it."""

    @property
    def span(self) -> Span:
        """Returns the characters of the answer."""
        # The model stops at the end token, before the white space that the template writes after it.
        return self.start, max(len(self.text.rstrip()), self.start)


class EndTokens:
    """Recognizes the control tokens that end an answer, and the one that ends a text."""

    def __init__(self, control: re.Pattern[str] | None, eos: str) -> None:
        self._control = control
        self._eos = eos

    def is_ended(self, text: str) -> bool:
        """Returns True if a text ends with a control token and white space, or the tokenizer has no such token."""
        if self._control is None:
            return True
        text = text.rstrip()
        matches = self._control.finditer(text, max(len(text) - _MAX_TOKEN_LENGTH, 0))
        return any(match.end() == len(text) for match in matches)

    def without_eos(self, text: str) -> str:
        """Returns a text without the end-of-text token that follows the end of an answer, "" if there is none."""
        text = text.rstrip()
        shorter = text.removesuffix(self._eos) if self._eos else text
        return shorter if len(shorter) < len(text) and self.is_ended(shorter) else ""

    def token_at(self, text: str, start: int) -> str:
        """Returns the control token at a position of a text, "" if there is none."""
        match = self._control.match(text, start) if self._control is not None else None
        return match[0] if match else ""


class ChatRenderer:
    """Renders one chat, as a whole and up to each turn; each rendering is cached."""

    def __init__(self, template: Template, chat: Conversation, end_tokens: EndTokens) -> None:
        self._template = template
        self._messages = chat.messages
        self._tools = chat.tools
        self._end_tokens = end_tokens
        self._rendered: dict[tuple[int, bool], str] = {}
        self._upto: dict[int, str] = {}

    def full_text(self) -> str:
        """Returns the text of the chat, with the end token of its last answer even if the template omits that."""
        last = len(self._messages) - 1
        text = self._render(last + 1)
        if self._messages[last].role != Role.ASSISTANT:
            return text
        # `upto` may add the end token, or drop an end-of-text token, which the whole chat keeps.
        return max(text, self.upto(last), key=len)

    def upto(self, turn: int) -> str:
        """Returns the chat with an answer as its last turn, up to the end of that answer.

        Some templates write the end of an answer with the next turn: the model then ends its answer with the control
        token that opens the turn of the user or of a tool. Others write an end of text behind the end of the answer.
        """
        if turn not in self._upto:
            text = self._render(turn + 1)
            is_ended, shorter = self._end_tokens.is_ended(text), self._end_tokens.without_eos(text)
            if not is_ended:
                alone, continued = self._with_plain_answer(turn)
                if continued.startswith(alone):
                    text += self._end_tokens.token_at(continued, len(alone))
            elif shorter:
                # Is it the end of the text, or of this answer? The former disappears as soon as a turn follows.
                alone, continued = self._with_plain_answer(turn)
                without_eos = self._end_tokens.without_eos(alone)
                if continued.startswith(without_eos) and not continued.startswith(alone.rstrip()):
                    text = shorter
            self._upto[turn] = text
        return self._upto[turn]

    def _with_plain_answer(self, turn: int) -> tuple[str, str]:
        """Returns the chat up to an answer ".", without and with a turn after it; twice "" if that fails.

        Templates may rewrite earlier answers, for instance without their thoughts; those without them stay the same.
        """
        before = [message.model_copy(update={"reasoning_content": None}) for message in self._messages[:turn]]
        answer = self._messages[turn].model_copy(update={"content": ".", "reasoning_content": None})
        # The turn that follows in the chat, or one that may follow: some templates refuse any other order of roles.
        next_messages = self._messages[turn + 1 : turn + 2]
        if not next_messages and answer.tool_calls:
            call = answer.tool_calls[-1]
            next_messages = [Message(role=Role.TOOL, content="?", name=call.function.name, tool_call_id=call.id)]
        elif not next_messages:
            next_messages = [Message(role=Role.USER, content="?")]
        chat = [*before, answer]
        try:
            alone = self._template.render(chat, tools=self._tools)
            return alone, self._template.render([*chat, *next_messages], tools=self._tools)
        except TemplateError:
            return "", ""

    def answered(self, turn: int) -> AnsweredChat:
        """Returns the chat with an answer as its last turn, behind the prompt that the model gets at inference.

        Raises:
            UnusableRow: The template gives no prompt that the chat begins with.
        """
        upto = self.upto(turn)
        if not turn:
            return self._opening_answer(upto)
        prompt = self._render(turn, add_generation_prompt=True)
        if upto.startswith(prompt):
            return AnsweredChat(upto, len(prompt))
        # Some templates write earlier turns in another way once the answer is there: without their thoughts, or without
        # the system turn. The model has seen what the prompt holds, so its answer is put behind that.
        answer = self._alone(turn)
        if answer and upto.endswith(answer):
            return AnsweredChat(prompt + answer, len(prompt), is_joined=True)
        raw = self._raw_answer(turn, prompt, upto)
        if raw:
            return AnsweredChat(prompt + raw, len(prompt), is_joined=True, is_raw=True)
        # The prompt of inference may hold more than the finished chat does, such as an opened thought.
        before = self._render(turn)
        common = _num_shared(prompt, upto)
        if not upto.startswith(before) or common < len(before):
            raise UnusableRow(f"turn {turn}: the chat template gives no prompt that the finished chat begins with")
        # A tag of the answer may begin as the thought does: `<b>` or `<tool_call>`, and `<think>`.
        common = max(len(_without_open_tag(upto[:common])), len(before))
        # The answer may begin with the words with which the prompt ends; they are part of the answer.
        answer_start = upto.rfind(self._messages[turn].text.strip())
        start = min(common, answer_start) if answer_start >= len(before) else common
        return AnsweredChat(upto, start, unmet_prompt=prompt[len(before) :])

    def _opening_answer(self, upto: str) -> AnsweredChat:
        """Returns the chat up to an answer that opens it."""
        # No prompt precedes the answer, and few templates render an empty chat: the header is that of any answer.
        question = [Message(role=Role.USER, content="?")]
        prompt = self._template.render(question, add_generation_prompt=True)
        shared = _num_shared(prompt, self._template.render(question))
        header = prompt[len(_without_open_tag(prompt[:shared])) :]
        answer = self._messages[0].text.strip()
        if not header.strip() and answer and answer in upto:
            return AnsweredChat(upto, len(upto[: upto.index(answer)].rstrip()))
        # The prompt may also open a thought, which this answer lacks.
        lengths = [len(header), len(header.rstrip()), *(tag.start() for tag in THOUGHT_TAG.finditer(header))]
        written = next((header[:length] for length in lengths if header[:length] in upto), "")
        if not written.strip():
            raise UnusableRow("turn 0: the chat template writes no header of the assistant before it")
        is_met = written.rstrip() == header.rstrip()
        return AnsweredChat(upto, upto.index(written) + len(written), unmet_prompt="" if is_met else header)

    def written(self, turn: int, answered: AnsweredChat | None = None) -> Written:
        """Returns where the parts of the chat up to a turn are written.

        Args:
            turn: Index of the last turn.
            answered: The chat up to there; None for the chat as the template renders it.
        """
        messages, render = self._messages[: turn + 1], self._template.render
        source = self._template.text
        if answered is not None and answered.is_joined:
            text = self._render(turn, add_generation_prompt=True)
            as_prompt = partial(render, add_generation_prompt=True)
            prompt = written_parts(messages[:-1], self._tools, as_prompt, text, source)
            if answered.is_raw:  # the answer is not the template's
                return prompt
        finished = written_parts(messages, self._tools, render, self._render(turn + 1), source)
        if answered is None or not answered.is_joined:
            return finished
        # The prompt has the turns before the answer, and the end of the finished chat has the answer.
        shift = len(answered.text) - len(self.upto(turn))
        answer = {
            part: [place + shift for place in places] for part, places in finished.places.items() if part.turn == turn
        }
        changed = prompt.changed | (finished.changed & answer.keys())
        return Written(answered.text, prompt.places | answer, changed, prompt.without_thought)

    def _raw_answer(self, turn: int, prompt: str, upto: str) -> str:
        """Returns an answer with its thought and its end, if the template opens it, but drops it; "" otherwise.

        Templates like that of DeepSeek-R1 write finished answers without the thoughts with which the model begins.
        """
        message, before = self._messages[turn], self._render(turn)
        thought, end_of_thought, answer = message.text.rpartition("</think>")
        other = message.model_copy(update={"content": f"{thought}?{end_of_thought}{answer}"})
        if message.reasoning_content is not None:
            thought, answer = message.reasoning_content, message.text
            other = message.model_copy(update={"reasoning_content": f"{thought}?"})
        elif not end_of_thought:
            return ""
        thought, answer = thought.strip().removeprefix("<think>").strip(), answer.strip()
        if not prompt.rstrip().endswith("<think>") or not upto.startswith(before) or message.tool_calls or not answer:
            return ""
        # Dropped is a thought if another one gives the same text.
        messages = [*self._messages[:turn], other]
        is_dropped = self._template.render(messages, tools=self._tools) == self._render(turn + 1)
        # Not before, where an earlier turn may say the same.
        place = upto.rfind(answer, len(before))
        if place < 0 or not is_dropped:
            return ""
        return f"{thought}\n</think>\n\n{upto[place:]}"

    def _alone(self, turn: int) -> str:
        """Returns an answer with its end, as the template writes it behind the prompt of a single question."""
        question = Message(role=Role.USER, content="?")
        chat = Conversation(messages=[question, self._messages[turn]], tools=self._tools)
        renderer = ChatRenderer(self._template, chat, self._end_tokens)
        try:
            prompt = renderer._render(1, add_generation_prompt=True)
            upto = renderer.upto(1)
        except TemplateError:
            return ""
        return upto.removeprefix(prompt) if upto.startswith(prompt) else ""

    def _render(self, num_messages: int, add_generation_prompt: bool = False) -> str:
        key = (num_messages, add_generation_prompt)
        if key not in self._rendered:
            messages = self._messages[:num_messages]
            self._rendered[key] = self._template.render(messages, add_generation_prompt, self._tools)
        return self._rendered[key]


def without_tool_results(text: str, span: Span, marks: tuple[str, str]) -> list[Span]:
    """Returns the parts of an answer that are not results of tools.

    Args:
        text: Text of the chat.
        span: The answer in it.
        marks: Strings that open and close a result. A result that is not closed extends to the end of the answer; an
            opening at the very end is the model's request for a result, and is kept.
    """
    opening, closing = marks
    parts = list[Span]()
    first, last = span
    while (start := text.find(opening, first, last)) >= 0 and start + len(opening) < last:
        parts.append((first, start))
        end = text.find(closing, start + len(opening), last)
        first = last if end < 0 else end + len(closing)
    return [part for part in [*parts, (first, last)] if part[0] < part[1]]


def check_landmarks(template: Template, landmarks: Mapping[str, str]) -> None:
    """Verifies that a chat template writes the strings that a config names around turns.

    Args:
        template: Template of the run.
        landmarks: The strings by their keys in `data.train.collator_kwargs`.

    Raises:
        ConfigError: A string is not where its key says; the message shows what the template writes there.
    """
    key = "data.train.collator_kwargs"
    expected = {name: text for name, text in landmarks.items() if name in _LANDMARKS}
    surroundings = _surroundings(template) if expected else {}
    problems = [
        Problem(
            f"{key}.{name}",
            f"expected {text!r} {_LANDMARKS[name]}, but the chat template writes {surroundings[name]!r}",
        )
        for name, text in expected.items()
        if name in surroundings and text not in surroundings[name]
    ]
    if problems:
        raise ConfigError(problems, "config")
    # The others are marks of tool results, which a template may leave to the text of an answer.
    for name in sorted(landmarks.keys() - _LANDMARKS.keys()):
        if landmarks[name] not in _with_tool_result(template):
            logger.warning(
                "%s.%s: the chat template does not write %r; it has an effect only where an answer contains it",
                key, name, landmarks[name],
            )  # fmt: skip


def _surroundings(template: Template) -> dict[str, str]:
    """Returns what the template writes at each landmark, nothing if it renders no plain chat."""
    chat = [
        message
        for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True)
        for message in (Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=answer))
    ]
    # Some templates refuse a chat without a system prompt.
    for messages in (chat, [Message(role=Role.SYSTEM, content="system"), *chat]):
        try:
            text = template.render(messages)
        except TemplateError:
            continue
        # Each text occurs once in the chat, so the template has written what is between them.
        starts = [text.find(message.text) for message in chat]
        if min(starts) < 0:
            continue
        between = text[starts[1] + len(_ANSWERS[0]) : starts[2]]
        return {
            "response_template": text[starts[2] + len(_QUESTIONS[1]) : starts[3]],
            "instruction_template": text[: starts[0]] + between,
            "end_of_turn_template": between,
        }
    return {}


def _with_tool_result(template: Template) -> str:
    """Returns a chat with a call of a tool and its result, "" if the template does not render it."""
    call = ToolCall(id="abcdef123", function=FunctionCall(name="look", arguments={"at": "it"}))
    chat = [
        Message(role=Role.USER, content=_QUESTIONS[0]),
        Message(role=Role.ASSISTANT, tool_calls=[call]),
        Message(role=Role.TOOL, content="seen", name="look", tool_call_id="abcdef123"),
        Message(role=Role.ASSISTANT, content=_ANSWERS[0]),
    ]
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    tool = ToolDefinition(function={"name": "look", "description": "Looks.", "parameters": schema})
    try:
        return template.render(chat, tools=[tool])
    except TemplateError:
        return ""


def ends_of_answers(template: Template, end_tokens: EndTokens) -> tuple[str, ...]:
    """Returns the control tokens that a template writes behind an answer, at the end of a chat and within it."""
    messages = [Message(role=Role.USER, content="?"), Message(role=Role.ASSISTANT, content=".")]
    chat = Conversation(messages=messages)
    renderer, ends = ChatRenderer(template, chat, end_tokens), list[str]()
    try:
        text = renderer.upto(1)
    except TemplateError:
        return ()
    _, continued = renderer._with_plain_answer(1)
    # Only the first one within a chat: those of the next turn follow.
    ends.append(end_tokens.token_at(continued, continued.rfind(".") + 1))
    start = text.rfind(".") + 1
    while token := end_tokens.token_at(text, start):
        ends.append(token)
        start += len(token)
    return tuple(dict.fromkeys(filter(None, ends)))


def _num_shared(a: str, b: str) -> int:
    """Returns with how many equal characters two texts begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _without_open_tag(text: str) -> str:
    """Returns a text without the beginning of a tag at its end, such as `<to`."""
    start = text.rfind("<")
    return text[:start] if start >= 0 and ">" not in text[start:] else text
