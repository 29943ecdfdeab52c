# SPDX-License-Identifier: Apache-2.0
"""Countdown: combine numbers to reach a target, in the row format of verl."""

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
    """Numbers, and the target to reach with them."""

    default_dataset = "d1shs0ap/countdown"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns the prompt, with the target and the numbers as ground truth of the reward."""
        numbers, target = field_of(sample, "nums"), field_of(sample, "target")
        if not isinstance(numbers, list) or not all(isinstance(number, int) for number in [*numbers, target]):
            raise UnusableValue(
                f"'nums' must be a list of whole numbers and 'target' a whole number, got {kind_of(numbers)}"
            )
        shown = ", ".join(map(str, numbers))
        return {
            "data_source": "countdown",
            "prompt": [{"role": "user", "content": INSTRUCTION.format(numbers=shown, target=target)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": {"target": target, "numbers": numbers}},
            "extra_info": {"split": self.split},
        }
