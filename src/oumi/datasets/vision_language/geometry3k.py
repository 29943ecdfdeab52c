# SPDX-License-Identifier: Apache-2.0
"""Geometry3K: geometry problems, each with a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, list_of, text_of
from oumi.core.datasets import VisionLanguageSftDataset
from oumi.core.types.conversation import Conversation
from oumi.datasets.vision_language.question import question_chat

INSTRUCTION = (
    r"Reason step by step first, between <think> and </think>; then give nothing but the final answer in \boxed{}."
)


class Geometry3kDataset(VisionLanguageSftDataset):
    """Geometry problems with a drawing and an answer."""

    default_dataset = "hiyouga/geometry3k"

    def __init__(self, *, add_system_instruction: bool = False, **named: Any) -> None:
        """Sets whether the instruction is a system turn, or follows the problem."""
        super().__init__(**named)
        self.add_system_instruction = add_system_instruction

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a question of drawing and problem, and the answer."""
        images = list_of(example, "images")
        if len(images) != 1:
            raise UnusableValue(f"has {len(images)} images, expected 1")
        # The mark stands for the drawing, which is a part of its own here.
        problem = text_of(example, "problem").replace("<image>", "").strip()
        if self.add_system_instruction:
            return question_chat(images, problem, text_of(example, "answer"), INSTRUCTION)
        return question_chat(images, f"{problem} {INSTRUCTION}", text_of(example, "answer"))
