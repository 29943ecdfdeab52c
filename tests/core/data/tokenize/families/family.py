# SPDX-License-Identifier: Apache-2.0
"""What a family of chat templates is known by: its template, its control tokens, and what of each chat it trains."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from oumi.core.data.tokenize.chat_template import bundled_template
from oumi.core.types.conversation import Conversation, FunctionCall, Message, Role, ToolCall, ToolDefinition
from tests.tiny import byte_tokenizer

NOW = datetime(2026, 1, 2)
"""The day that templates tell."""
TOOL = (
    '{"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": '
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
)


@dataclass(frozen=True)
class Refused:
    """The family cannot express a chat, and the row is told so."""

    reason: str


NO_TOOLS = Refused("the chat template does not write the tools of the chat")
NO_THOUGHTS = Refused("turn 1: the chat template does not write its reasoning_content")
NO_TURNS_OF_TOOLS = Refused("Conversation roles must alternate user/assistant/user/assistant/...")

Expected = str | tuple[str, ...] | Refused
"""A text whose trained tokens stand in ⟦ ⟧, several where a template rewrites earlier turns, or why there is none."""


@dataclass(frozen=True)
class Family:
    """A template and what it makes of five chats, written down by hand."""

    source: str
    """`bundled:`, `trl:` or `own:` and the name of the template."""
    single: Expected
    many: Expected
    system: Expected
    tools: Expected = NO_TOOLS
    reasoning: Expected = NO_THOUGHTS
    bos: str | None = None
    eos: str = "<|im_end|>"
    control: tuple[str, ...] = ()
    """Further control tokens."""
    words: tuple[str, ...] = ()
    """Further tokens that are no control tokens."""
    opens_thought: bool = False
    """The prompt of inference ends with more than a chat without thoughts holds."""

    def expected(self, case: str) -> Expected:
        """Returns what is to come of a chat."""
        expected: Expected = getattr(self, case)
        return expected

    def template(self) -> str:
        """Returns the template; skips the test where the installed TRL does not bring it."""
        kind, _, name = self.source.partition(":")
        if kind == "bundled":
            return bundled_template(name)
        if kind == "own":
            return (Path(__file__).parent / f"{name}.jinja").read_text().removesuffix("\n")
        file = files("trl") / "chat_templates" / f"{name}.jinja"
        if not file.is_file():
            pytest.skip(f"the installed TRL has no template {name}")
        return file.read_text()

    def tokenizer(self) -> Any:
        """Returns a tokenizer of bytes in which the control tokens of the family are tokens."""
        from tokenizers import AddedToken

        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"eos_token": self.eos, **({"bos_token": self.bos} if self.bos else {})})
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in self.control])
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.words])
        return tokenizer


def _chat(*messages: Message, **kwargs: Any) -> Conversation:
    return Conversation(messages=list(messages), **kwargs)


def _message(role: str, content: str | None = None, **others: Any) -> Message:
    return Message(role=Role(role), content=content, **others)


_CALL = ToolCall(id="abcdef123", function=FunctionCall(name="weather", arguments={"city": "Bonn"}))
_TURN = (_message("user", "Hi?"), _message("assistant", "Yo."))
CHATS = {
    "single": _chat(*_TURN),
    "many": _chat(*_TURN, _message("user", "B?"), _message("assistant", "C.")),
    "system": _chat(_message("system", "Be."), *_TURN),
    "tools": _chat(
        _message("user", "Rain?"),
        _message("assistant", tool_calls=[_CALL]),
        _message("tool", "no", name="weather", tool_call_id="abcdef123"),
        _message("assistant", "No."),
        tools=[ToolDefinition.model_validate_json(TOOL)],
    ),
    "reasoning": _chat(
        _message("user", "One?"), _message("assistant", "1.", reasoning_content="hm"),
        _message("user", "Two?"), _message("assistant", "2.", reasoning_content="so"),
    ),
}  # fmt: skip
