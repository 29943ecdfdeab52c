# SPDX-License-Identifier: Apache-2.0
"""Data sets of prompts, whose answers are scored by a reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oumi.core.data.datasets.base import BaseMapDataset
from oumi.core.data.records.schemas import SHAPES
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Prompt


class BaseExperimentalGrpoDataset(BaseMapDataset):
    """A data set of prompts, with the columns that a reward reads. Override `transform`."""

    holds = Prompt
    _shape = "prompt"
    _expected = "a mapping with a prompt"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a mapping with `prompt`; `prompt` and `completion` are stripped if they are text."""
        stripped = {key: text.strip() for key in ("prompt", "completion") if isinstance(text := sample.get(key), str)}
        return {**sample, **stripped}

    def transform_conversation(self, sample: Mapping[str, Any]) -> Conversation:
        """Returns the prompt of a row as a conversation without an answer; the other columns become its metadata."""
        prompt = to_prompt(self.transform(sample))
        return Conversation(messages=list(prompt.messages), metadata=dict(prompt.columns))

    def conversation(self, idx: int) -> Conversation:
        """Returns the prompt of a row as a conversation."""
        return self.transform_conversation(self.raw(idx))

    def conversations(self) -> Iterator[Conversation]:
        """Yields the prompt of each row as a conversation."""
        return (self.conversation(index) for index in range(len(self)))


class BaseRubricDataset(BaseExperimentalGrpoDataset):
    """Prompts whose answers are scored by rubrics, each with `name`, `description` and `weight`."""

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a prompt, after its `system_prompt`; raises ValueError if a rubric is incomplete."""
        for i, rubric in enumerate(sample["rubrics"]):
            if not isinstance(rubric, Mapping) or not {"name", "description", "weight"} <= rubric.keys():
                raise ValueError(f"rubric {i} must have a name, a description and a weight")
        # Turns may have a system turn of their own, so only text gets one.
        if not sample.get("system_prompt") or not isinstance(sample.get("prompt"), str):
            return sample
        turns = [
            {"role": "system", "content": sample["system_prompt"]},
            {"role": "user", "content": sample["prompt"]},
        ]
        return {**sample, "prompt": turns}


def to_prompt(sample: Any) -> Prompt:
    """Returns a mapping with `prompt`, text or turns, as a Prompt; raises UnusableValue for any other."""
    prompt = sample if isinstance(sample, Prompt) else SHAPES["prompt"](sample)
    assert isinstance(prompt, Prompt), "the converter of prompts returns nothing else"
    return prompt
