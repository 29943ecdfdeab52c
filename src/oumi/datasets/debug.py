# SPDX-License-Identifier: Apache-2.0
"""Data sets that are made, not read: the same rows each time, to try a run with."""

from __future__ import annotations

from typing import Any

from oumi.core.datasets import BaseDpoDataset, BaseExperimentalKtoDataset, BasePretrainingDataset, BaseSftDataset
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Conversation, Message, Role

_NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve")


class DebugSftDataset(BaseSftDataset):
    """Greetings."""

    default_dataset = "debug_sft"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Takes how many there are."""
        super().__init__(**named)
        self.dataset_size = checked(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        return [{"question": _question(i), "answer": _answer(i)} for i in range(self.dataset_size)]

    def transform_conversation(self, example: Any) -> Conversation:
        """Returns a greeting and its answer."""
        return Conversation(
            messages=[
                Message(role=Role.USER, content=example["question"]),
                Message(role=Role.ASSISTANT, content=example["answer"]),
            ]
        )


class DebugPretrainingDataset(BasePretrainingDataset):
    """Short documents."""

    default_dataset = "debug_pretraining"

    def __init__(self, *, dataset_size: int = 1000, **named: Any) -> None:
        """Takes how many there are."""
        super().__init__(**named)
        self.dataset_size = checked(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        return [
            {self.dataset_text_field: f"Document {i}. {_question(i)} {_answer(i)}"} for i in range(self.dataset_size)
        ]


class DebugDpoDataset(BaseDpoDataset):
    """Greetings, and what would be a poor answer."""

    default_dataset = "debug_dpo"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Takes how many there are."""
        super().__init__(**named)
        self.dataset_size = checked(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        return [
            {"prompt": _question(i), "chosen": _answer(i), "rejected": "Go away."} for i in range(self.dataset_size)
        ]


class DebugKtoDataset(BaseExperimentalKtoDataset):
    """Greetings with good answers and poor ones, in turns."""

    default_dataset = "debug_kto"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Takes how many there are."""
        super().__init__(**named)
        self.dataset_size = checked(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        return [
            {"prompt": _question(i), "completion": _answer(i) if i % 2 == 0 else "Go away.", "label": i % 2 == 0}
            for i in range(self.dataset_size)
        ]


def checked(dataset_size: Any) -> int:
    """Returns a number of rows; raises ConfigError if it is none."""
    if not isinstance(dataset_size, int) or dataset_size < 1:
        raise ConfigError(f"dataset_kwargs.dataset_size: got {dataset_size!r}, must be a whole number, 1 or more")
    return dataset_size


def _question(i: int) -> str:
    return f"Hello, I am {_NAMES[i % len(_NAMES)]} number {i}."


def _answer(i: int) -> str:
    return f"Hello {_NAMES[i % len(_NAMES)]} number {i}, nice to meet you."
