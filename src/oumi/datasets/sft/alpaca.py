# SPDX-License-Identifier: Apache-2.0
"""Alpaca: instructions with an optional input, and their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import text_of
from oumi.core.datasets import BaseSftDataset
from oumi.core.types.conversation import Conversation, Message, Role

# The original prompts of the Alpaca project.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)


class AlpacaDataset(BaseSftDataset):
    """Alpaca, and data sets in its format."""

    default_dataset = "tatsu-lab/alpaca"

    def __init__(self, *, include_system_prompt: bool = True, **named: Any) -> None:
        """Sets whether a conversation begins with the prompt of the Alpaca project, as a system turn."""
        super().__init__(**named)
        self.include_system_prompt = include_system_prompt

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a question and an answer; an input follows the instruction, below a heading."""
        question, extra, output = example["instruction"], example.get("input") or "", example["output"]
        for name, text in (("instruction", question), ("output", output)):
            if not isinstance(text, str):
                raise ValueError(f"'{name}' must be text")
        # Dropping them would train on half of a conversation.
        for name in ("system", "history"):
            if example.get(name):
                raise ValueError(f"has '{name}', which this data set does not read; text_sft does")
        if not output:
            raise ValueError("'output' is empty, so there is nothing to learn")
        if extra:
            question = f"{question}\n\n### Input:\n{extra}"
        messages = [Message(role=Role.USER, content=question), Message(role=Role.ASSISTANT, content=output)]
        if self.include_system_prompt:
            system = _WITH_INPUT if extra else _WITHOUT_INPUT
            messages.insert(0, Message(role=Role.SYSTEM, content=system))
        return Conversation(messages=messages)


class AlpacaEvalDataset(BaseSftDataset):
    """AlpacaEval: instructions without an answer, to evaluate a model."""

    default_dataset = "tatsu-lab/alpaca_eval"

    def __init__(self, *, include_system_prompt: bool = False, **named: Any) -> None:
        """Sets whether a conversation begins with the prompt of the Alpaca project, as a system turn."""
        super().__init__(**named)
        self.include_system_prompt = include_system_prompt

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the instruction alone."""
        question = Message(role=Role.USER, content=text_of(example, "instruction"))
        system = [Message(role=Role.SYSTEM, content=_WITHOUT_INPUT)] if self.include_system_prompt else []
        return Conversation(messages=[*system, question])
