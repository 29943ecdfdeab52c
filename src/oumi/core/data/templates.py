# SPDX-License-Identifier: Apache-2.0
"""Which chat template is used, and rendering with it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.types.conversation import Message

FOLDER = Path(__file__).parent / "chat_templates"
_DATE_CODES = [f"%{letter}" for letter in "aAbBcdefFGHIjmMpSTuUVwWxXyYzZ"] + [f"%-{letter}" for letter in "dHIjmMSuy"]
_VISION = ("llava", "molmo", "qwen2-vl-instruct", "qwen3-vl-instruct", "internvl3")


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
        if name.lower() in _VISION:
            raise ConfigError(f"model.chat_template: '{name}' is for vision-language models, which are not built yet")
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"model.chat_template: unknown template '{name}'{hint}")
    return (FOLDER / f"{found}.jinja").read_text().removesuffix("\n")


class Template:
    """A chat template, with the tokenizer whose special tokens it writes."""

    def __init__(self, tokenizer: Any, text: str, now: datetime | None = None) -> None:
        """Takes a template and the date and time that it tells; None takes those of each rendering."""
        self._tokenizer = tokenizer
        self._text = text if now is None else _dated(text, now)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """Returns the chat as text.

        Raises:
            TemplateError: The template refuses the chat, or fails on it.
            ConfigError: It is no template.
        """
        plain = [{"role": str(one.role), "content": one.content} for one in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    plain, chat_template=self._text, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateSyntaxError as error:
            raise ConfigError(f"model.chat_template: line {error.lineno}: {error.message}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error


def _dated(text: str, now: datetime) -> str:
    """Returns a template whose `strftime_now` tells one moment: a macro of that name hides the library's clock."""
    if "strftime_now" not in text:
        return text
    told = "".join(f" | replace('{code}', {json.dumps(now.strftime(code))})" for code in _DATE_CODES)
    macro = f"{{% macro strftime_now(format) %}}{{{{ format | replace('%%', '\0'){told} | replace('\0', '%') }}}}"
    return f"{macro}{{% endmacro %}}\n{text}"  # the line break goes with the tag


__all__ = ["FOLDER", "Template", "TemplateError", "bundled_template", "chat_template_for"]
