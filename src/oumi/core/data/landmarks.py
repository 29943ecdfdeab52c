# SPDX-License-Identifier: Apache-2.0
"""Strings that a config names around turns: nothing is searched by them, but they must be true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oumi.core.data.templates import Template, TemplateError
from oumi.core.data.turns import Span
from oumi.core.errors import ConfigError, Problem
from oumi.core.log import logger
from oumi.core.types.conversation import FunctionCall, Message, Role, ToolCall, ToolDefinition

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
