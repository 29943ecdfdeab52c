# SPDX-License-Identifier: Apache-2.0
"""Countdown: reach a number with others, as rows that verl reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue, field_of, kind_of
from oumi.core.datasets import BaseExperimentalGrpoDataset

INSTRUCTION = (
    "Combine the numbers {numbers} with +, -, * and / to an equation that gives {target}. Use each number exactly "
    "once. Reason between <think> and </think>, then give the equation on the last line between <answer> and "
    "</answer>, such as <answer>(1 + 2) / 3</answer>."
)


class CountdownGrpoDataset(BaseExperimentalGrpoDataset):
    """Some numbers, and the one to reach."""

    default_dataset = "d1shs0ap/countdown"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the task; what it is judged by are both the target and the numbers."""
        numbers, target = field_of(sample, "nums"), field_of(sample, "target")
        if not isinstance(numbers, list) or not all(isinstance(number, int) for number in [*numbers, target]):
            raise UnusableValue(f"'nums' must be a list of whole numbers and 'target' one, got {kind_of(numbers)}")
        shown = ", ".join(map(str, numbers))
        return {
            "data_source": "countdown",
            "prompt": [{"role": "user", "content": INSTRUCTION.format(numbers=shown, target=target)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": {"target": target, "numbers": numbers}},
            "extra_info": {"split": self.split},
        }
