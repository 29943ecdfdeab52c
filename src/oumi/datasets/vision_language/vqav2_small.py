# SPDX-License-Identifier: Apache-2.0
"""A small part of VQAv2: visual question answering."""

from __future__ import annotations

from typing import Any

from oumi.datasets.vision_language.question import ImageQuestionDataset


class Vqav2SmallDataset(ImageQuestionDataset):
    """Questions about photographs, with the most frequent answer of several people."""

    default_dataset = "merve/vqav2-small"

    def __init__(self, **named: Any) -> None:
        columns = {"image_column": "image", "question_column": "question", "answer_column": "multiple_choice_answer"}
        super().__init__(**{**columns, **named})  # a config may name other columns
