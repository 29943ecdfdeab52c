# SPDX-License-Identifier: Apache-2.0
"""Small generated data sets, with the same rows each time, to try out a run."""

from __future__ import annotations

from typing import Any

from oumi.core.datasets import BaseDpoDataset, BaseExperimentalKtoDataset, BasePretrainingDataset, BaseSftDataset
from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Conversation, Message, Role

_NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve")


class DebugSftDataset(BaseSftDataset):
    """Conversations of a greeting and its answer."""

    default_dataset = "debug_sft"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Sets the number of rows."""
        super().__init__(**named)
        self.dataset_size = _checked_size(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        greetings = map(_greeting, range(self.dataset_size))
        return [{"question": question, "answer": answer} for question, answer in greetings]

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
        """Sets the number of rows."""
        super().__init__(**named)
        self.dataset_size = _checked_size(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        greetings = map(_greeting, range(self.dataset_size))
        return [{self.dataset_text_field: f"Document {i}. {' '.join(texts)}"} for i, texts in enumerate(greetings)]


class DebugDpoDataset(BaseDpoDataset):
    """Greetings, each with a chosen and a rejected answer."""

    default_dataset = "debug_dpo"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Sets the number of rows."""
        super().__init__(**named)
        self.dataset_size = _checked_size(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        greetings = map(_greeting, range(self.dataset_size))
        return [{"prompt": prompt, "chosen": chosen, "rejected": "Go away."} for prompt, chosen in greetings]


class DebugKtoDataset(BaseExperimentalKtoDataset):
    """Greetings with good and bad answers, alternating."""

    default_dataset = "debug_kto"

    def __init__(self, *, dataset_size: int = 5, **named: Any) -> None:
        """Sets the number of rows."""
        super().__init__(**named)
        self.dataset_size = _checked_size(dataset_size)

    def _load_data(self) -> list[dict[str, Any]]:
        return [
            {"prompt": prompt, "completion": answer if i % 2 == 0 else "Go away.", "label": i % 2 == 0}
            for i, (prompt, answer) in enumerate(map(_greeting, range(self.dataset_size)))
        ]


def _checked_size(dataset_size: Any) -> int:
    """Returns the number of rows; raises ConfigError unless it is an integer > 0."""
    if not isinstance(dataset_size, int) or dataset_size < 1:
        raise ConfigError(f"dataset_kwargs.dataset_size: got {dataset_size!r}, must be a whole number, 1 or more")
    return dataset_size


def _greeting(i: int) -> tuple[str, str]:
    """Returns a greeting and its answer."""
    name = f"{_NAMES[i % len(_NAMES)]} number {i}"  # the number makes each row unique
    return f"Hello, I am {name}.", f"Hello {name}, nice to meet you."
