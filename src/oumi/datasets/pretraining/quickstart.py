# SPDX-License-Identifier: Apache-2.0
"""Documents about words, generated from a seed: the chats of `oumi/quickstart` as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi.core.datasets import BasePretrainingDataset
from oumi.core.types.example import Row, Source
from oumi.datasets.sft.quickstart import check_arguments, make_chats


class QuickstartTextsDataset(BasePretrainingDataset):
    """Documents of one to three questions about words, with their answers."""

    default_dataset = "oumi/quickstart_texts"

    def __init__(self, *, num_rows: int = 4_800, seed: int = 0, **named: Any) -> None:
        """Sets the number of documents and the seed; see BasePretrainingDataset for the other arguments."""
        super().__init__(**named)
        check_arguments(self.split or "train", num_rows, seed)
        self.num_rows = num_rows
        self.seed = seed

    def raw_rows(self) -> Iterator[Row]:
        """Yields the documents, each with its index as the line."""
        split = self.split or "train"
        for i, turns in enumerate(make_chats(split, self.num_rows, self.seed)):
            text = " ".join(f"{question} {answer}." for question, answer in turns)
            yield Row({self.dataset_text_field: text}, Source(self.dataset_name, f"{self.dataset_name}[{split}]", i))

    def count(self) -> int:
        """Returns the number of documents."""
        return self.num_rows
