# SPDX-License-Identifier: Apache-2.0
"""The chat template of a run, and rendering with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

from oumi.core.data.tokenize.template_sandbox import Overrun, compile_template, render
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.system.filesystem import expanded
from oumi.core.types.conversation import FunctionCall, Message, Role, ToolCall, ToolDefinition

FOLDER = Path(__file__).parent / "chat_templates"
_MAX_OVERRUNS = 3
"""Renderings that may exceed the limits before the template is rejected."""
_NAME, _KEY, _VALUE = "probe_name", "probe_key", "probe_value"
"""Content of the probes: words that no template writes by itself."""
_SCHEMA = {"type": "object", "properties": {_KEY: {"type": "string"}}}


def chat_template_for(tokenizer: Any, name: str | None) -> str | dict[str, str]:
    """Returns the text of a chat template, or the texts of a tokenizer that has several, by their names.

    Args:
        tokenizer: Its own template is the default.
        name: None selects the tokenizer's template, or the bundled `default` if it has none; `auto` requires the
            tokenizer's; any other value is a bundled name or the path of a `.jinja` file.

    Raises:
        ConfigError: There is no such template, or the name is `auto` and the tokenizer has none.
    """
    if name is None or name == "auto":
        if tokenizer.chat_template is not None:
            template: str | dict[str, str] = tokenizer.chat_template
            return template
        if name == "auto":
            raise ConfigError("model.chat_template: 'auto', but the tokenizer has no chat template")
        logger.warning("the tokenizer has no chat template; the bundled 'default' is used")
        name = "default"
    if name.endswith(".jinja"):
        path = expanded(name)
        if not path.is_file():
            raise ConfigError(f"model.chat_template: no file {name}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"model.chat_template: {name} is not UTF-8 text (byte {error.start})") from None
    return bundled_template(name)


def bundled_template(name: str) -> str:
    """Returns the text of a bundled template; the case of `name` does not matter."""
    # Looked up among the listed names, so that `../other` is not a path.
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.jinja"))}
    if name.lower() not in paths:
        hint = did_you_mean(name, list(paths)) or f"; known: {', '.join(paths)}"
        raise ConfigError(f"model.chat_template: unknown template '{name}'{hint}")
    return paths[name.lower()].read_text(encoding="utf-8").removesuffix("\n")


class Template:
    """A compiled chat template with the special tokens of its tokenizer."""

    def __init__(self, tokenizer: Any, text: str | dict[str, str], now: datetime | None = None) -> None:
        """Compiles a template.

        Args:
            tokenizer: Its special tokens are variables of the template.
            text: The template, or several by name: `default`, and `tool_use` for chats with tools, if there is one.
            now: Date and time that the template reads; None reads the clock at each rendering.

        Raises:
            ConfigError: `text` is not a valid template, or none of them is named `default`.
        """
        self._for_tools: Template | None = None
        if not isinstance(text, str):
            if "default" not in text:
                raise ConfigError(
                    f"model.chat_template: the tokenizer has several ({', '.join(text)}), but none is named 'default'"
                )
            if "tool_use" in text:
                self._for_tools = Template(tokenizer, text["tool_use"], now)
            text = text["default"]
        self._text = text
        try:
            self._template = compile_template(text, datetime.now if now is None else lambda: now)
        except TemplateSyntaxError as error:
            raise ConfigError(f"model.chat_template: line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise ConfigError(f"model.chat_template: {error}") from None
        # Templates write `{{ bos_token }}` and the like; transformers passes the same variables.
        special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._variables = {**self._template.globals, **special_tokens, "documents": None}
        # Found by probes when they are first needed; None until then.
        self._tool_spelling: tuple[bool, str | None] | None = None
        self._reads_parts_only: bool | None = None
        self._num_overruns = 0

    @property
    def text(self) -> str:
        """Returns all that decides what is rendered."""
        return self._text if self._for_tools is None else f"{self._text}\0{self._for_tools.text}"

    @property
    def writes_date(self) -> bool:
        """Returns True if the rendered text may depend on the day."""
        return "strftime_now" in self.text

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns a chat as text.

        The content of a message with images is a list of parts, as the templates of processors expect it:
        `{"type": "image"}` and `{"type": "text", "text": ...}`. Any other content is one string, or a list of one
        part if the template reads nothing but lists.

        Args:
            messages: The chat.
            add_generation_prompt: Append the header with which the assistant's answer begins.
            tools: Schemas of the functions that the assistant may call.
            variables: Further variables of the template.

        Raises:
            TemplateError: The template raises an exception on this chat.
            ConfigError: The template exceeded the limits of time and memory several times.
        """
        if tools and self._for_tools is not None:
            return self._for_tools.render(messages, add_generation_prompt, tools, variables)
        if any(message.tool_calls for message in messages):
            self._tool_spelling = self._tool_spelling or self._find_tool_spelling()
            plain = [_plain(message, *self._tool_spelling) for message in messages]
        else:
            plain = [_plain(message) for message in messages]
        schemas = [tool.model_dump() for tool in tools or ()] or None
        # Probed only if the first chat loses its text: most templates need no probe.
        if self._reads_parts_only is None:
            try:
                text = self._render(plain, False, schemas)
                is_lost = not any(message.text.strip() in text for message in messages)
            except UndefinedError:  # a string has none of the keys of a part
                is_lost = True
            self._reads_parts_only = (
                is_lost and not self._writes_content(_VALUE) and self._writes_content(_as_parts(_VALUE))
            )
        if self._reads_parts_only:
            plain = [{**message, "content": _as_parts(message["content"])} for message in plain]
        text = self._render(plain, add_generation_prompt, schemas, variables)
        # A template for text alone prints the list of parts as Python writes it.
        if "{'type': 'image'" in text:
            raise TemplateError("it does not support images: it writes the content of such a message as a list")
        return text

    def _render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Any,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        chat = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            return render(self._template, {**self._variables, **(variables or {}), **chat})
        except Overrun as error:
            # One slow chat is the fault of the chat; several are the fault of the template.
            self._num_overruns += 1
            if self._num_overruns < _MAX_OVERRUNS:
                raise
            raise ConfigError(f"model.chat_template: {error}, as for {_MAX_OVERRUNS - 1} chats before") from None
        # What the Python code behind an expression of a template may raise.
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    def _writes_content(self, content: Any) -> bool:
        """Returns True if the template writes `_VALUE` from a content of this form."""
        try:
            text = self._render([{"role": "user", "content": content}], False, None)
        except TemplateError:
            return False
        return _VALUE in text and f"'{_VALUE}'" not in text  # quoted, it is a list printed by Python

    def _find_tool_spelling(self) -> tuple[bool, str | None]:
        """Returns how the template reads tool calls: whether arguments are values or JSON, and the empty content.

        Templates disagree, and the wrong form is written without an error. So a probe is rendered in each of four
        forms, and the first is chosen that writes a whole call.
        """
        tool = ToolDefinition(function={"name": _NAME, "description": "d", "parameters": _SCHEMA})
        call = ToolCall(id="abcdef123", function=FunctionCall(name=_NAME, arguments={_KEY: _VALUE}))
        chat = [
            Message(role=Role.USER, content="?"),
            Message(role=Role.ASSISTANT, tool_calls=[call]),
            Message(role=Role.TOOL, content="!", name=_NAME, tool_call_id="abcdef123"),
            Message(role=Role.ASSISTANT, content="."),
        ]
        for as_values in (True, False):
            for empty in ("", None):
                plain = [_plain(message, as_values, empty) for message in chat]
                try:
                    text = self._render(plain, False, [tool.model_dump()])
                except TemplateError:
                    continue
                is_mangled = '\\"' in text or f"'{_KEY}'" in text  # JSON within JSON, or printed by Python
                if _KEY in text and _VALUE in text and not is_mangled:
                    return as_values, empty
        return True, ""


def _plain(message: Message, as_values: bool = True, empty: str | None = None) -> dict[str, Any]:
    """Returns a message as templates read it.

    Args:
        message: The message.
        as_values: Arguments of tool calls are a mapping; otherwise JSON text.
        empty: The content of a message that has none.
    """
    plain: dict[str, Any] = {"role": str(message.role), "content": message.text}
    if message.contains_images():
        plain["content"] = [
            {"type": "image"} if item.is_image() else {"type": "text", "text": item.content or ""}
            for item in message.content_items
        ]
    if message.content is None:
        plain["content"] = empty
    for key in ("name", "tool_call_id"):
        if (value := getattr(message, key)) is not None:
            plain[key] = value
    if message.reasoning_content is not None:  # templates read it under either name
        plain |= {"reasoning_content": message.reasoning_content, "thinking": message.reasoning_content}
    if message.tool_calls:
        plain["tool_calls"] = []
        for call in message.tool_calls:
            arguments = call.function.values() if as_values else call.function.arguments
            plain_call = {"type": call.type, "function": {"name": call.function.name, "arguments": arguments}}
            # No key, rather than None, if there is no id: a template may test whether it is defined.
            plain["tool_calls"].append(plain_call if call.id is None else {"id": call.id, **plain_call})
    return plain


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


__all__ = ["FOLDER", "Template", "TemplateError", "bundled_template", "chat_template_for"]
