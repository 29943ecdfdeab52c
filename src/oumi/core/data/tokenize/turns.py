# SPDX-License-Identifier: Apache-2.0
"""Which characters of a rendered chat belong to which turn, and the strings that a config expects around turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from oumi.core.data.tokenize.chat_template import Template, TemplateError
from oumi.core.errors import ConfigError, Problem
from oumi.core.log import logger
from oumi.core.types.conversation import Conversation, FunctionCall, Message, Role, ToolCall, ToolDefinition

Span = tuple[int, int]
"""First character, and the one after the last."""

_LONGEST = 200
"""Characters of any control token."""


class Undecided(Exception):  # noqa: N818  it says what a row is
    """The template does not tell which part of the text a turn is."""


class Ends:
    """The control tokens with which answers end."""

    def __init__(self, control: re.Pattern[str] | None, eos: str) -> None:
        self._control = control
        self._eos = eos

    def has(self, text: str) -> bool:
        """Returns True if a text ends with a control token, but for white space, or there are none."""
        if self._control is None:
            return True
        text = text.rstrip()
        return any(found.end() == len(text) for found in self._control.finditer(text, max(len(text) - _LONGEST, 0)))

    def without_eos(self, text: str) -> str:
        """Returns a text without the end token of texts, if it stands behind the end of an answer; else nothing."""
        text = text.rstrip()
        before = text.removesuffix(self._eos) if self._eos else text
        return before if len(before) < len(text) and self.has(before) else ""

    def opening(self, text: str, at: int) -> str:
        """Returns the control token at a place of a text, if there is one."""
        found = self._control.match(text, at) if self._control is not None else None
        return found[0] if found else ""


class Writer:
    """One chat, and what the template makes of parts of it."""

    def __init__(self, template: Template, chat: Conversation, ends: Ends) -> None:
        self._template = template
        self._messages = chat.messages
        self._tools = chat.tools
        self._ends = ends
        self._rendered: dict[tuple[int, bool], str] = {}
        self._upto: dict[int, str] = {}

    def whole(self) -> str:
        """Returns the whole chat, with the end of its last answer, which the template may leave to a turn after it."""
        last = len(self._messages) - 1
        text = self._render(last + 1)
        if self._messages[last].role != Role.ASSISTANT:
            return text
        return max(text, self.upto(last), key=len)

    def check_written(self, text: str) -> None:
        """Raises Undecided if the template drops a turn that is not the assistant's."""
        for i, one in enumerate(self._messages):
            if one.role != Role.ASSISTANT and one.text.strip() not in text and text == self._without(i):
                raise Undecided(f"turn {i}: the chat template drops what the {one.role} says")

    def writes_tools(self, text: str) -> bool:
        """Returns True if the tools of the chat change its text."""
        try:
            return not text.startswith(self._template.render(self._messages))
        except TemplateError:
            return True

    def _without(self, turn: int) -> str | None:
        try:
            rest = [*self._messages[:turn], *self._messages[turn + 1 :]]
            return self._template.render(rest, tools=self._tools)
        except TemplateError:
            return None

    def upto(self, turn: int) -> str:
        """Returns the chat with an answer as its last turn, up to the end of it.

        Some templates leave the end to the next turn: what a model says to end its answer is the control token that
        opens the turn of the user, or of the tool. Others write an end of the whole text behind that of the answer.
        """
        if turn not in self._upto:
            self._upto[turn] = self._ended(turn, self._render(turn + 1))
        return self._upto[turn]

    def _ended(self, turn: int, text: str) -> str:
        is_ended, shorter = self._ends.has(text), self._ends.without_eos(text)
        if is_ended and not shorter:
            return text
        alone, longer = self._with_plain_answer(turn)
        if not is_ended:
            return text + self._ends.opening(longer, len(alone)) if longer.startswith(alone) else text
        is_of_text = longer.startswith(self._ends.without_eos(alone)) and not longer.startswith(alone.rstrip())
        return shorter if is_of_text else text

    def _with_plain_answer(self, turn: int) -> tuple[str, str]:
        """Returns the chat with a plain answer, which no template changes later, without and with the turn after it."""
        answer = self._messages[turn].model_copy(update={"content": ".", "reasoning_content": None})
        chat = [*self._messages[:turn], answer]
        follows = self._messages[turn + 1 : turn + 2] or [_next_after(answer)]
        try:
            alone = self._template.render(chat, tools=self._tools)
            return alone, self._template.render([*chat, *follows], tools=self._tools)
        except TemplateError:
            return "", ""

    def span(self, turn: int, upto: str) -> Span:
        """Returns where an answer begins, after the prompt of inference, and where its end mark ends."""
        start = self._start(turn, upto)
        message = self._messages[turn]
        answer = message.text.strip()
        end = len(upto.rstrip())  # white space after the end mark is never generated
        # The first words of the answer may be those that the prompt ends with.
        if not _is_in(answer, upto[max(start - len(answer), 0) :]):
            raise Undecided(f"turn {turn}: the chat template changes or drops its text")
        for what, text in (("reasoning_content", message.reasoning_content), *_called(message)):
            if text and not _is_in(text, upto[start:]):  # a tool is named where it is defined, too
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
        # The answer may begin as that thought does: `<b>` or `<tool_call>`, and `<think>`.
        tag = upto.rfind("<", len(before), common)
        if tag >= 0 and ">" not in upto[tag:common]:
            common = tag
        answer = upto.rfind(self._messages[turn].text.strip())
        return min(common, answer) if answer >= len(before) else common

    def _end_of_header(self, upto: str) -> int:
        """Returns where an answer begins that nothing stands before: after what opens any answer."""
        question = [Message(role=Role.USER, content="?")]
        asked = self._template.render(question, add_generation_prompt=True)
        header = asked.removeprefix(self._template.render(question))
        return upto.index(header) + len(header) if header in upto else 0


def _next_after(answer: Message) -> Message:
    if answer.tool_calls:
        call = answer.tool_calls[-1]
        return Message(role=Role.TOOL, content="?", name=call.function.name, tool_call_id=call.id)
    return Message(role=Role.USER, content="?")


def _is_in(text: str, whole: str) -> bool:
    """Returns True if a text is written; templates may write other white space."""
    return text.strip() in whole or "".join(text.split()) in "".join(whole.split())


def _called(message: Message) -> list[tuple[str, str]]:
    return [("tool call", one.function.name) for one in message.tool_calls or ()]


_QUESTIONS, _ANSWERS = ("first question", "second question"), ("first answer", "second answer")
_KEY = "data.train.collator_kwargs"
_PLACES = {
    "response_template": "before an answer",
    "instruction_template": "before a question",
    "end_of_turn_template": "after an answer",
}


def check_landmarks(template: Template, landmarks: Mapping[str, str]) -> None:
    """Verifies that a chat template writes what a config names around turns.

    Args:
        template: Of the run.
        landmarks: The strings, by their names among the arguments of the collator.

    Raises:
        ConfigError: One does not stand where its name says; with what stands there instead.
    """
    named = {name: text for name, text in landmarks.items() if name in _PLACES}
    found = _places(template) if named else {}
    problems = [
        Problem(f"{_KEY}.{name}", f"{text!r} does not stand {_PLACES[name]}: the chat template writes {found[name]!r}")
        for name, text in named.items()
        if name in found and text not in found[name]
    ]
    if problems:
        raise ConfigError(problems, "config")
    for name in sorted(landmarks.keys() - _PLACES.keys()):
        if landmarks[name] not in _with_tool_result(template):
            logger.warning(
                "%s.%s: the chat template does not write %r; it counts only where the text of an answer holds it",
                _KEY, name, landmarks[name],
            )  # fmt: skip


def without_tool_results(text: str, span: Span, marks: tuple[str, str]) -> list[Span]:
    """Returns the parts of an answer that are no results of tools.

    Args:
        text: Of the chat.
        span: The answer in it.
        marks: What opens a result and what closes it. A result that is not closed reaches to the end of the answer; an
            opening at the very end is how the model asks for a result, and stays.
    """
    opening, closing = marks
    kept = list[Span]()
    first, last = span
    while (opened := text.find(opening, first, last)) >= 0 and opened + len(opening) < last:
        kept.append((first, opened))
        closed = text.find(closing, opened + len(opening), last)
        first = last if closed < 0 else closed + len(closing)
    return [one for one in [*kept, (first, last)] if one[0] < one[1]]


def _places(template: Template) -> dict[str, str]:
    """Returns what stands before an answer, before a question and after an answer; nothing if no chat can be made."""
    turns = zip(_QUESTIONS, _ANSWERS, strict=True)
    chat = [
        one
        for asked, said in turns
        for one in (Message(role=Role.USER, content=asked), Message(role=Role.ASSISTANT, content=said))
    ]
    for messages in (chat, [Message(role=Role.SYSTEM, content="system"), *chat]):
        try:
            text = template.render(messages)
        except TemplateError:
            continue
        at = [text.find(one) for one in (_QUESTIONS[0], _ANSWERS[0], _QUESTIONS[1], _ANSWERS[1])]
        if min(at) < 0:
            continue
        between = text[at[1] + len(_ANSWERS[0]) : at[2]]
        before = text[: at[0]] + between
        return {
            "response_template": text[at[2] + len(_QUESTIONS[1]) : at[3]],
            "instruction_template": before,
            "end_of_turn_template": between,
        }
    return {}


def _with_tool_result(template: Template) -> str:
    call = ToolCall(id="abcdef123", function=FunctionCall(name="look", arguments={"at": "it"}))
    chat: Sequence[Message] = [
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
