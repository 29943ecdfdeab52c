# SPDX-License-Identifier: Apache-2.0
"""Count how often a letter occurs in a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of
from oumi.core.datasets import BaseExperimentalGrpoDataset

INSTRUCTION = r"End with the answer: a whole number, written in digits inside \boxed{}, for instance \boxed{7}."


class LetterCountGrpoDataset(BaseExperimentalGrpoDataset):
    """Questions, with the count as their answer."""

    default_dataset = "oumi-ai/oumi-letter-count"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the question after the instruction, and `letter_count`."""
        if "letter_count" in sample:
            count = sample["letter_count"]
        else:  # on the Hub, the count is within the metadata
            metadata = field_of(sample, "metadata")
            if not isinstance(metadata, Mapping):
                raise UnusableValue("'metadata' must be an object with 'letter_count_integer'")
            count = field_of(metadata, "letter_count_integer")
        if not isinstance(count, int):
            raise UnusableValue(f"'letter_count' must be a whole number, got {count!r}")
        return {"prompt": led_by(INSTRUCTION, sample), "letter_count": count}


def led_by(instruction: str, sample: Mapping[str, Any]) -> list[Any]:
    """Returns a system turn with an instruction, and the turns or the prompt of a row after it."""
    turns = sample.get("messages") or field_of(sample, "prompt")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    return [{"role": "system", "content": instruction}, *turns]
