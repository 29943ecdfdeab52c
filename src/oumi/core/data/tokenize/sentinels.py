# SPDX-License-Identifier: Apache-2.0
"""Proves where a chat template writes each part of a chat.

A search for the words of a part would also find them elsewhere: in a question that quotes them, or in a second call of
the same function. So the chat is rendered again with a number, its sentinel, in each part. If the text without the
sentinels is the text of the chat itself, the template has treated both chats alike, and each sentinel shows where its
part is written.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from oumi.core.data.tokenize.chat_template import TemplateError
from oumi.core.types.conversation import Message, Role, ToolDefinition

Span = tuple[int, int]
"""Index of the first character, and index after the last."""

_SENTINELS = tuple(re.compile(f"904{digit}[0-8]{{5}}") for digit in range(1, 9))
"""Numbers, since they may stand in words and in numbers. Two cannot overlap: only the first digit is a nine."""
_WORD = re.compile(r"<[^<>]*>|\w{2,}")
"""A tag, which stays as it is, or a word."""
_THOUGHT_END = re.compile(r"</think(?:ing)?>|</thought>|</reasoning>|<\|END_THINKING\|>|<channel\|>|\[/THINK\]")
"""Ends of thoughts that stand in the text of an answer."""
THOUGHT_TAG = re.compile(rf"({_THOUGHT_END.pattern}|<think(?:ing)?>|<thought>|<reasoning>|\[THINK\])")
"""Beginnings and ends of thoughts."""
_JSON_SCALAR = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*)"(?P<colon>\s*:)?|(?P<number>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')

_MIN_LENGTH = 16
"""Characters of a turn that no template writes by chance."""

NO_TURN = -1
"""The turn of a definition of a tool."""


class UnusableRow(Exception):  # noqa: N818  a row, not a run, fails
    """A row that cannot be trained; the message is the reason."""


@dataclass(frozen=True)
class Part:
    """A part of a chat that the template must write."""

    turn: int
    kind: str
    """`text`, `reasoning_content`, `function` (the name of a call), `argument` or `tool`."""
    text: str
    """The part, with its sentinel."""
    sentinel: str = ""
    """What stands nowhere else: the number, or the part itself. Empty if the part may also stand elsewhere."""
    function: str = ""
    """Name of the function that is called, or of the tool."""


@dataclass(frozen=True)
class Written:
    """A rendered chat, and where each part of it is written."""

    text: str
    """The text without sentinels."""
    places: dict[Part, list[int]]
    """Positions in `text` of the sentinel of each part."""
    changed: set[Part]
    """Parts that are written, but not completely, or with other words."""
    without_thought: set[Part]
    """Those of them that lack no more than the thought at their beginning."""


class _Marker:
    """Puts a sentinel into each part of a chat."""

    def __init__(self, prefix: str | None, names: bool = False, in_words: bool = False) -> None:
        """Sets which parts get sentinels, and where.

        Args:
            prefix: The digits with which sentinels begin; None for none at all.
            names: Names of functions and arguments get them, too; templates may look these up.
            in_words: Texts get them within a word, not at their end, which templates may examine.
        """
        self._prefix, self._names, self._in_words = prefix, names, in_words
        self.parts: list[Part] = []

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        return [self._message(message, turn) for turn, message in enumerate(messages)]

    def tools(self, tools: Sequence[ToolDefinition]) -> list[ToolDefinition]:
        marked = []
        for tool in tools:
            name = self._part(Part(NO_TURN, "tool", tool.function["name"], function=tool.function["name"]), self._names)
            marked.append(tool.model_copy(update={"function": {**tool.function, "name": name}}))
        return marked

    def _message(self, message: Message, turn: int) -> Message:
        changes: dict[str, object] = {}
        if isinstance(message.content, list):
            changes["content"] = [
                item.model_copy(update={"content": self._text(turn, item.content or "")}) if item.is_text() else item
                for item in message.content
            ]
        elif message.content is not None:
            changes["content"] = self._text(turn, message.content)
        if message.reasoning_content is not None:
            changes["reasoning_content"] = self._text(turn, message.reasoning_content, "reasoning_content")
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                name = call.function.name
                changed = {
                    "name": self._part(Part(turn, "function", name, function=name), self._names),
                    "arguments": self._arguments(turn, name, call.function.arguments),
                }
                function = call.function.model_copy(update=changed)
                calls.append(call.model_copy(update={"function": function}))
            changes["tool_calls"] = calls
        return message.model_copy(update=changes)

    def _text(self, turn: int, text: str, kind: str = "text") -> str:
        body = text.rstrip()
        if not body.strip():
            return text
        place = len(body)
        if self._in_words:
            words = [match for match in _WORD.finditer(body) if not match[0].startswith("<")]
            if words:
                longest = max(words, key=lambda match: len(match[0]))
                place = (longest.start() + longest.end()) // 2
        return self._part(Part(turn, kind, body), True, place) + text[len(body) :]

    def _arguments(self, turn: int, function: str, arguments: str) -> str:
        def marked(match: re.Match[str]) -> str:
            if match["number"] is not None:
                return self._number(turn, function, match[0])
            part = Part(turn, "argument", match["text"], function=function)
            return f'"{self._part(part, self._names or match["colon"] is None)}"{match["colon"] or ""}'

        # In the JSON text itself, since templates may write it as it stands.
        return _JSON_SCALAR.sub(marked, arguments)

    def _number(self, turn: int, function: str, number: str) -> str:
        # Before its digits, since no number begins with a zero.
        place = int(number.startswith("-"))
        marked = f"{number[:place]}{self._next()}{number[place:]}"
        # Templates that read the value write it as Python does, which would look like another treatment.
        is_marked = _as_python(number) == number and _as_python(marked) == marked
        return self._part(Part(turn, "argument", number, function=function), is_marked, place)

    def _next(self) -> str:
        """Returns the sentinel of the next part."""
        return f"{self._prefix}{''.join(str(len(self.parts) // 9**i % 9) for i in range(4, -1, -1))}"

    def _part(self, part: Part, is_marked: bool, place: int | None = None) -> str:
        """Adds a part and returns its text, with its sentinel if it gets one."""
        if is_marked and self._prefix is not None and len(self.parts) < 9**5:
            sentinel, place = self._next(), len(part.text) if place is None else place
            part = replace(part, text=f"{part.text[:place]}{sentinel}{part.text[place:]}", sentinel=sentinel)
        self.parts.append(part)
        return part.text


def written_parts(
    messages: Sequence[Message],
    tools: Sequence[ToolDefinition] | None,
    render: Callable[..., str],
    text: str,
    source: str,
) -> Written:
    """Returns where the parts of a chat are written in its text.

    Args:
        messages: The chat.
        tools: Functions that the assistant may call.
        render: Renders messages and `tools`.
        text: What it returns for this chat.
        source: The chat template.
    """
    if not tools and (found := _found_once(messages, text, source)) is not None:
        return found
    pattern = next((pattern for pattern in _SENTINELS if not pattern.search(text)), _SENTINELS[0])
    # Templates examine texts: whether one ends with a tag, for instance. Then sentinels at other places may do.
    for in_words, names in ((False, True), (True, False), (False, False), (True, True)):
        marker = _Marker(pattern.pattern[:4], names, in_words)
        marked_tools = marker.tools(tools or ()) or None
        try:
            marked_text = render(marker.messages(messages), tools=marked_tools)
        except TemplateError:
            continue
        if pattern.sub("", marked_text) == text:
            return _located(text, marked_text, marker.parts, pattern)
    marker = _Marker(None)
    marker.tools(tools or ())
    marker.messages(messages)
    return _counted(text, marker.parts)


def _found_once(messages: Sequence[Message], text: str, source: str) -> Written | None:
    """Returns where the turns of a plain chat are written, None unless each of them is long and stands there once.

    Most chats are like this, and need not be rendered again.
    """
    places, ends = dict[Part, list[int]](), list[tuple[int, int]]()
    for turn, message in enumerate(messages):
        words = message.content.strip() if isinstance(message.content, str) else ""
        # The template may write such words itself, and short ones may stand anywhere.
        if len(words) < _MIN_LENGTH or message.tool_calls or message.reasoning_content or words in source:
            return None
        start = text.find(words)
        if start < 0 or text.find(words, start + 1) >= 0:
            return None
        end = start + len(words)
        ends.append((end, start))
        places[Part(turn, "text", words, words)] = [end]
    ends.sort()
    # One turn may quote another, which the template drops.
    if any(start < end for (end, _), (_, start) in pairwise(ends)):
        return None
    return Written(text, places, set(), set())


def check_parts(written: Written, spans: Mapping[int, Span], roles: Sequence[Role]) -> set[str]:
    """Verifies that a text has each part of its chat once, in the order of the turns, and trains those of answers only.

    A template may drop thoughts of earlier turns, and what an assistant says beside a tool call: at inference, it drops
    them there, too.

    Args:
        written: A chat, up to its last turn, and where its parts are.
        spans: The characters of each answer that is trained, by its turn; empty if the whole text is trained.
        roles: Role of each turn.

    Returns:
        The kinds of parts that the template has dropped.

    Raises:
        UnusableRow: A part is missing, written twice, changed, or at a wrong place.
    """
    turns, dropped, droppable = sorted(spans), set[str](), _droppable(written.places)
    for part, places in written.places.items():
        if part.turn == NO_TURN:
            if not places:
                raise UnusableRow(f"the chat template does not write the tools of the chat: {part.function}")
            continue
        role, where = roles[part.turn], f"turn {part.turn}: the chat template"
        # No prompt of inference holds the last turn.
        is_context = part.turn not in spans and (bool(spans) or part.turn < len(roles) - 1)
        if is_context and part in droppable:
            dropped |= set() if places else {part.kind}
        elif problem := _problem_of(part, written, role, is_context):
            raise UnusableRow(f"{where} {problem}")
        # Where its turn is: in its own span, or between the spans before and after its turn.
        i = bisect_left(turns, part.turn)
        first = spans[turns[i - 1]][1] if i else 0
        later = turns[i + (part.turn in spans) :]
        last = spans[later[0]][0] if later else len(written.text)
        if part.turn in spans:
            first, last = spans[part.turn]
        num_there = sum(first <= place <= last for place in places)
        # The name of a function may be repeated, with its result for instance. Words without a sentinel stand anywhere.
        is_unique = bool(part.sentinel) and part.kind != "function"
        if places and (not num_there or (is_unique and len(places) > 1)):
            raise UnusableRow(f"{where} writes a part of it twice, or at the place of another turn: {part.kind}")
    return dropped


def _droppable(parts: Iterable[Part]) -> set[Part]:
    """Returns thoughts, and what is said beside a tool call."""
    parts = list(parts)
    with_calls = {part.turn for part in parts if part.kind == "function"}
    return {p for p in parts if p.kind == "reasoning_content" or (p.kind == "text" and p.turn in with_calls)}


def _problem_of(part: Part, written: Written, role: Role, is_context: bool) -> str:
    """Returns what a template does to a part that it must write, "" if that is written."""
    is_missing, is_changed = not written.places[part], part in written.changed
    if role != Role.ASSISTANT:
        # A template may parse results of tools, and write them anew.
        may_change = role == Role.TOOL and _is_json(part.text.replace(part.sentinel, ""))
        return f"changes or drops the text of the {role}" if is_missing or (is_changed and not may_change) else ""
    if is_missing and part.function:
        return f"does not write its tool call: {part.function}"
    if is_missing and part.kind == "reasoning_content":
        return "does not write its reasoning_content"
    is_cut = is_changed and not (is_context and part in written.without_thought)
    return "changes or drops its text" if is_missing or is_cut else ""


def _located(text: str, marked_text: str, parts: Sequence[Part], pattern: re.Pattern[str]) -> Written:
    """Returns where the parts are in a text, from the text with their sentinels."""
    marked_places: dict[str, list[int]] = {}
    unmarked_places: dict[str, list[int]] = {}
    for i, match in enumerate(pattern.finditer(marked_text)):
        marked_places.setdefault(match[0], []).append(match.start())
        # Each sentinel before it has moved it by its length.
        unmarked_places.setdefault(match[0], []).append(match.start() - i * len(match[0]))
    places, changed, without_thought = dict[Part, list[int]](), set[Part](), set[Part]()
    for part in parts:
        if not part.sentinel:
            places[part] = _ends_of(part, text)
            continue
        places[part] = unmarked_places.get(part.sentinel, [])
        # Templates write calls in many forms.
        if places[part] and part.kind in ("text", "reasoning_content"):
            place = marked_places[part.sentinel][0]
            window = marked_text[max(place - 2 * len(part.text), 0) : place + 2 * len(part.text)]
            if not _holds(window, part.text):
                changed.add(part)
                if _holds(window, _THOUGHT_END.split(part.text)[-1]):
                    without_thought.add(part)
    return Written(text, places, changed, without_thought)


def _counted(text: str, parts: Sequence[Part]) -> Written:
    """Returns where the parts may be in a text without sentinels: their words, if they stand as often as the parts."""
    droppable = _droppable(parts)
    needed = "\0".join(part.text for part in parts if part not in droppable)
    num_needed = {words: needed.count(words) for words in {part.text for part in parts}}
    places = dict[Part, list[int]]()
    for part in parts:
        is_missing = part.text in text and text.count(part.text) < num_needed[part.text] + (part in droppable)
        places[part] = [] if is_missing else _ends_of(part, text)
    return Written(text, places, set(), set())


def _holds(text: str, part: str) -> bool:
    """Returns True if a text holds a part, perhaps as JSON or with other white space around tags of thoughts."""
    part = part.strip()
    if part in text:
        return True
    forms = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    if any(form in text for form in forms):
        return True
    return bool(THOUGHT_TAG.search(part)) and any(_joined_tags(form) in _joined_tags(text) for form in forms)


def _joined_tags(text: str) -> str:
    """Returns a text without the white space around tags of thoughts."""
    return "".join(piece.strip() for piece in THOUGHT_TAG.split(text))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _as_python(number: str) -> str:
    """Returns a number of JSON as Python writes it, "" if it is none."""
    try:
        return repr(json.loads(number))
    except ValueError:
        return ""


def _ends_of(part: Part, text: str) -> list[int]:
    """Returns where the words of a part end in a text, or their first word if they stand there in another form."""
    words = part.text.strip()
    forms = {words, _as_python(words)} if part.kind == "argument" else {words}
    ends = [match.end() for form in sorted(forms) if form for match in re.finditer(re.escape(form), text)]
    if not ends and words and _holds(text, words):
        ends = [match.end() for match in re.finditer(re.escape(words.split()[0]), text)]
    return sorted(ends)
