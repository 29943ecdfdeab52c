# SPDX-License-Identifier: Apache-2.0
"""How often a letter stands in a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of
from oumi.core.datasets import BaseExperimentalGrpoDataset

INSTRUCTION = r"End with the answer: a whole number, written in digits inside \boxed{}, for instance \boxed{7}."


class LetterCountGrpoDataset(BaseExperimentalGrpoDataset):
    """A question, and the count that answers it."""

    default_dataset = "oumi-ai/oumi-letter-count"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the question, led by how to answer it, and `letter_count`."""
        count = sample["letter_count"] if "letter_count" in sample else _counted(field_of(sample, "metadata"))
        if not isinstance(count, int):
            raise UnusableValue(f"'letter_count' must be a whole number, got {count!r}")
        return {"prompt": led_by(INSTRUCTION, sample), "letter_count": count}


def led_by(instruction: str, sample: Mapping[str, Any]) -> list[Any]:
    """Returns the turns of a row, or its prompt as one, after a turn of the system."""
    turns = sample.get("messages") or field_of(sample, "prompt")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    return [{"role": "system", "content": instruction}, *turns]


def _counted(metadata: Any) -> Any:
    if not isinstance(metadata, Mapping):
        raise UnusableValue("'metadata' must be an object with 'letter_count_integer'")
    return field_of(metadata, "letter_count_integer")
