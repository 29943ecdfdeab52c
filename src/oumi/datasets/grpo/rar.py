# SPDX-License-Identifier: Apache-2.0
"""Rubrics as Rewards: questions about medicine and science, with rubrics for a good answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import list_of, text_of
from oumi.core.datasets import BaseRubricDataset


class RarDataset(BaseRubricDataset):
    """Questions with rubrics, and the reference answer in `metadata`."""

    default_dataset = "anisha2102/RaR-Medicine"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the question with its rubrics, whose `title` becomes their `name`."""
        rubrics = [
            {("name" if key == "title" else key): value for key, value in rubric.items()}
            for rubric in list_of(sample, "rubric")
        ]
        metadata = {key: sample[key] for key in ("reference_answer", "question_source") if key in sample}
        return super().transform({"prompt": text_of(sample, "question"), "rubrics": rubrics, "metadata": metadata})
