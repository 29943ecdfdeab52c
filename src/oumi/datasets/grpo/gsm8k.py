# SPDX-License-Identifier: Apache-2.0
"""GSM8K: math word problems, in the row format of verl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, text_of
from oumi.core.datasets import BaseExperimentalGrpoDataset

INSTRUCTION = 'Reason step by step, and write the final answer after "####".'


class Gsm8kGrpoDataset(BaseExperimentalGrpoDataset):
    """Word problems with a number as their answer."""

    default_dataset = "openai/gsm8k"
    default_subset = "main"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the problem, with the number after `####` in its solution as ground truth."""
        question, solution = text_of(sample, "question"), text_of(sample, "answer")
        # The last mark, since a solution may contain others.
        _, mark, answer = solution.rpartition("####")
        if not mark or not answer.strip():
            raise UnusableValue("'answer' has no number after '####'")
        return {
            "data_source": self.default_dataset,
            "prompt": [{"role": "user", "content": f"{question} {INSTRUCTION}"}],
            "ability": "math",
            # Thousands separators and currency are no part of the number.
            "reward_model": {"style": "rule", "ground_truth": answer.strip().replace(",", "").replace("$", "")},
            "extra_info": {"split": self.split, "question": question, "answer": solution},
        }
