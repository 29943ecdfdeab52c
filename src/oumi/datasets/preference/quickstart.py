# SPDX-License-Identifier: Apache-2.0
"""Opinions about words, generated from a seed: of two answers, the kind one is preferred.

A word belongs to one split only, as in `oumi/quickstart`, so the pairs of the validation split are about words that no
training row contains. Both answers have as many letters, and unless they are simple the same words, in another order:
only what is said and what is denied differs. A model with random weights prefers either one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from oumi.core.datasets import BaseDpoDataset
from oumi.core.types.example import Row, Source
from oumi.datasets.sft.quickstart import check_arguments, make_word

_KIND = ("fine", "warm", "good", "nice", "great", "sweet", "lovely", "clever", "superb", "bright")
_UNKIND = ("dull", "cold", "poor", "mean", "awful", "nasty", "boring", "stupid", "horrid", "lousy")
_QUESTIONS = ("What do you think of {}?", "Do you like {}?", "Tell me about {}.")
_SIMPLE = ("I find {} {} and {}.", "Well, {} is {}, and {} too.", "To me {} seems {} and {}.")
_ANSWERS = ("I find {} {}, not {}.", "Well, {} is {} and not {}.", "To me {} seems {}, never {}.")


class QuickstartPreferencesDataset(BaseDpoDataset):
    """Pairs of a kind and an unkind answer about a word; the kind one is chosen."""

    default_dataset = "oumi/quickstart_preferences"

    def __init__(self, *, num_rows: int = 960, seed: int = 0, is_simple: bool = False, **named: Any) -> None:
        """Sets the rows; see BaseDpoDataset for the other arguments.

        Args:
            num_rows: Number of pairs.
            seed: Determines the pairs.
            is_simple: No answer denies anything, so that single words tell which one is kind.
            named: Arguments of BaseDpoDataset.
        """
        super().__init__(**named)
        check_arguments(self.split or "train", num_rows, seed)
        self.num_rows = num_rows
        self.seed = seed
        self.is_simple = is_simple

    def raw_rows(self) -> Iterator[Row]:
        """Yields the pairs, each with its index as the line."""
        split = self.split or "train"
        for i, pair in enumerate(make_pairs(split, self.num_rows, self.seed, self.is_simple)):
            yield Row(pair, Source(self.dataset_name, f"{self.dataset_name}[{split}]", i))

    def count(self) -> int:
        """Returns the number of pairs."""
        return self.num_rows


def make_pairs(split: str, num_rows: int, seed: int, is_simple: bool = False) -> Iterator[Mapping[str, str]]:
    """Yields `num_rows` pairs about words of `split`; a seed determines them."""
    rng = random.Random(f"preferences {split} {seed}")  # a text as seed gives the same numbers in every process
    for _ in range(num_rows):
        word = make_word(rng, split)
        first, second = rng.sample(range(len(_KIND)), 2)
        words = {"chosen": (_KIND[first], _UNKIND[second]), "rejected": (_UNKIND[second], _KIND[first])}
        if is_simple:
            words = {name: (list_[first], list_[second]) for name, list_ in (("chosen", _KIND), ("rejected", _UNKIND))}
        answer = rng.choice(_SIMPLE if is_simple else _ANSWERS)
        yield {
            "prompt": rng.choice(_QUESTIONS).format(word),
            **{name: answer.format(word, *both) for name, both in words.items()},
        }
