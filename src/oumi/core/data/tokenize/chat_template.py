# SPDX-License-Identifier: Apache-2.0
"""Which chat template is used, and rendering with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from oumi.core.data.tokenize.template_sandbox import Overrun, compile_template, render
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.types.conversation import ContentItem, FunctionCall, Message, Role, ToolCall, ToolDefinition

FOLDER = Path(__file__).parent / "chat_templates"


def chat_template_for(tokenizer: Any, name: str | None) -> str:
    """Returns the chat template that the config names.

    Args:
        tokenizer: Its own template serves when none is named.
        name: None takes the tokenizer's, or the bundled `default` if it has none; `auto` insists on the
            tokenizer's; else a bundled name, or a `.jinja` file.

    Raises:
        ConfigError: No such template, or `auto` with a tokenizer that has none.
    """
    own = tokenizer.chat_template
    if name is None or name == "auto":
        if own is not None:
            return str(own)
        if name == "auto":
            raise ConfigError("model.chat_template: 'auto', but the tokenizer brings no chat template")
        logger.warning("the tokenizer brings no chat template; the bundled 'default' is used")
        name = "default"
    if name.endswith(".jinja"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"model.chat_template: no file {name}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"model.chat_template: {name} is not UTF-8 text (byte {error.start})") from None
    return bundled_template(name)


def bundled_template(name: str) -> str:
    """Returns the bundled template called `name`, in any case."""
    known = sorted(path.stem for path in FOLDER.glob("*.jinja"))
    found = next((one for one in known if one == name.lower()), None)
    if found is None:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"model.chat_template: unknown template '{name}'{hint}")
    return (FOLDER / f"{found}.jinja").read_text().removesuffix("\n")


class Template:
    """A chat template, with the tokenizer whose special tokens it writes."""

    def __init__(self, tokenizer: Any, text: str, now: datetime | None = None) -> None:
        """Takes a template and the date and time that it tells; None takes those of each rendering.

        Raises:
            ConfigError: It is no template.
        """
        self.text = text
        self.now = now
        try:
            self._template = compile_template(text, datetime.now if now is None else lambda: now)
        except TemplateSyntaxError as error:
            raise ConfigError(f"model.chat_template: line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise ConfigError(f"model.chat_template: {error}") from None
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._always = {**self._template.globals, **special, "documents": None}
        self._tool_spelling: tuple[bool, str | None] | None = None
        self._reads_parts_only: bool | None = None
        self._num_overruns = 0

    @property
    def tells_date(self) -> bool:
        """Returns True if what it writes depends on the day."""
        return "strftime_now" in self.text

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        """Returns the chat as text.

        A message with images is a list of its parts, as the templates of processors read it: `{"type": "image"}`
        and `{"type": "text", "text": ...}`. Any other is one text, or a list of one part where only lists are read.

        Args:
            messages: The chat.
            add_generation_prompt: Go on to where the assistant's answer begins.
            tools: Schemas of the functions that the assistant may call.

        Raises:
            TemplateError: The template refuses the chat, or fails on it.
            ConfigError: It took too long again and again.
        """
        spelling = self._spelling() if any(one.tool_calls for one in messages) else (True, None)
        plain = [_plain(one, *spelling) for one in messages]
        schemas = [one.model_dump() for one in tools or ()] or None
        if self._reads_parts_only is None:
            self._reads_parts_only = self._loses(messages, plain, schemas) and self._wants_parts()
        if self._reads_parts_only:
            plain = [_in_parts(one) for one in plain]
        text = self._render(plain, add_generation_prompt, schemas)
        if "{'type': 'image'" in text:
            raise TemplateError("it writes a message with an image as a list, so it is for text alone")
        return text

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, tools: Any) -> str:
        of_chat = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return render(self._template, {**self._always, **of_chat})
        except Overrun as error:
            self._num_overruns += 1
            if self._num_overruns < _MAX_OVERRUNS:
                raise
            raise ConfigError(f"model.chat_template: {error}, as for {_MAX_OVERRUNS - 1} chats before") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    def _loses(self, messages: Sequence[Message], plain: list[dict[str, Any]], tools: Any) -> bool:
        """Returns True if no text of a chat is written, or reading one as a list of parts fails."""
        try:
            text = self._render(plain, False, tools)
        except UndefinedError:
            return True
        return not any(one.text.strip() in text for one in messages)

    def _wants_parts(self) -> bool:
        """Returns True if the template loses a text that is no list of parts."""
        asked = {"role": "user", "content": _VALUE}
        return not self._tells(asked) and self._tells(_in_parts(asked))

    def _tells(self, message: dict[str, Any]) -> bool:
        try:
            text = self._render([message], False, None)
            return _VALUE in text and f"'{_VALUE}'" not in text
        except TemplateError:
            return False

    def _spelling(self) -> tuple[bool, str | None]:
        """Returns how this template wants tool calls: arguments as values or as text, and what an empty content is.

        The first of four spellings under which a call is written whole.
        """
        if self._tool_spelling is None:
            spellings = [(as_values, empty) for as_values in (True, False) for empty in ("", None)]
            self._tool_spelling = next((one for one in spellings if self._writes_calls(one)), (True, ""))
        return self._tool_spelling

    def _writes_calls(self, spelling: tuple[bool, str | None]) -> bool:
        tool = ToolDefinition(function={"name": _NAME, "description": "d", "parameters": _SCHEMA})
        call = ToolCall(id="abcdef123", function=FunctionCall(name=_NAME, arguments={_KEY: _VALUE}))
        chat = [
            Message(role=Role.USER, content="?"),
            Message(role=Role.ASSISTANT, tool_calls=[call]),
            Message(role=Role.TOOL, content="!", name=_NAME, tool_call_id="abcdef123"),
            Message(role=Role.ASSISTANT, content="."),
        ]
        try:
            text = self._render([_plain(one, *spelling) for one in chat], False, [tool.model_dump()])
        except TemplateError:
            return False
        is_mangled = '\\"' in text or f"'{_KEY}'" in text  # text within text, or values of Python
        return _KEY in text and _VALUE in text and not is_mangled


_MAX_OVERRUNS = 3
"""Chats on which a template may take too long, until it is given up."""
_NAME, _KEY, _VALUE = "probe_name", "probe_key", "probe_value"
_SCHEMA = {"type": "object", "properties": {_KEY: {"type": "string"}}}


def _plain(message: Message, as_values: bool, empty: str | None) -> dict[str, Any]:
    """Returns a message as templates read it."""
    plain: dict[str, Any] = {"role": str(message.role), "content": message.text}
    if message.contains_images():
        plain["content"] = [_plain_part(one) for one in message.content_items]
    if message.content is None:
        plain["content"] = empty
    for key in ("name", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            plain[key] = value
    if message.reasoning_content is not None:
        plain |= {"reasoning_content": message.reasoning_content, "thinking": message.reasoning_content}
    if message.tool_calls:
        plain["tool_calls"] = [_plain_call(one, as_values) for one in message.tool_calls]
    return plain


def _plain_part(item: ContentItem) -> dict[str, str]:
    return {"type": "image"} if item.is_image() else {"type": "text", "text": item.content or ""}


def _in_parts(plain: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(plain["content"], str):
        return plain
    return {**plain, "content": [{"type": "text", "text": plain["content"]}]}


def _plain_call(call: ToolCall, as_values: bool) -> dict[str, Any]:
    function = {
        "name": call.function.name,
        "arguments": call.function.values() if as_values else call.function.arguments,
    }
    return {**({} if call.id is None else {"id": call.id}), "type": call.type, "function": function}


__all__ = ["FOLDER", "Template", "TemplateError", "bundled_template", "chat_template_for"]
