# SPDX-License-Identifier: Apache-2.0
"""MNIST as conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.types.conversation import Conversation
from oumi.datasets.vision_language.question import question_chat

QUESTION = "Which digit is this? Answer with the digit alone."


class MnistSftDataset(VisionLanguageSftDataset):
    """Images of digits, each with a question about the digit."""

    default_dataset = "ylecun/mnist"

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns the question and the digit."""
        label = field_of(example, "label")
        if label not in range(10):  # a Parquet file may have 7.0, which is in the range too
            raise UnusableValue(f"'label' must be a digit, got {label!r}")
        return question_chat(field_of(example, "image"), QUESTION, str(int(label)))
