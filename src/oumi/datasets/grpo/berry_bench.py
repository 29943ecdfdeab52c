# SPDX-License-Identifier: Apache-2.0
"""BerryBench: count how often each letter occurs in a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import field_of
from oumi.core.datasets import BaseExperimentalGrpoDataset
from oumi.datasets.grpo.letter_count import led_by

INSTRUCTION = (
    "Give the answer as one JSON object in a fenced block that begins with ```json, each letter a key and its count "
    'the value, for instance {"a": 2, "b": 1}.'
)


class BerryBenchGrpoDataset(BaseExperimentalGrpoDataset):
    """Questions, with the answer in `metadata`."""

    default_dataset = "oumi-ai/berrybench-v0.1.1"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the question after the instruction, and `metadata`."""
        return {"prompt": led_by(INSTRUCTION, sample), "metadata": field_of(sample, "metadata")}
