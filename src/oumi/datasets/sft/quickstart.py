# SPDX-License-Identifier: Apache-2.0
"""Questions about words, generated from a seed: the data of `oumi quickstart`.

A word belongs to one split only, by its checksum. So a question of the test split is about a word that no training
row contains, for any seed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

from oumi.core.datasets import BaseSftDataset
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Row, Source

Turn = tuple[str, str]
"""A question and its answer."""

_SHARES = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}
"""Checksums modulo 100 of the words of each split."""

_LENGTHS = (3, 4, 5, 6, 6, 7, 7, 8, 8, 8)
"""Numbers of letters to choose from; long words are harder, so they are more frequent."""

_MAX_TURNS = 3
_LETTERS, _VOWELS, _CONSONANTS = "abcdefghijklmnopqrstuvwxyz", "aeiou", "bcdfghjklmnpqrstvwxyz"


class QuickstartDataset(BaseSftDataset):
    """Conversations of one to three questions: spell a word backwards, or count its letters."""

    default_dataset = "oumi/quickstart"

    def __init__(self, *, num_rows: int = 14_400, seed: int = 0, **named: Any) -> None:
        """Sets the number of conversations and the seed; see BaseSftDataset for the other arguments."""
        super().__init__(**named)
        check_arguments(self.split or "train", num_rows, seed)
        self.num_rows = num_rows
        self.seed = seed

    def raw_rows(self) -> Iterator[Row]:
        """Yields the questions and answers of each conversation, with its index as the line."""
        split = self.split or "train"
        for i, turns in enumerate(make_chats(split, self.num_rows, self.seed)):
            yield Row(turns, Source(self.dataset_name, f"{self.dataset_name}[{split}]", i))

    def transform_conversation(self, example: Any) -> Conversation:
        """Returns questions and answers as a conversation."""
        roles = (Role.USER, Role.ASSISTANT)
        return Conversation(
            messages=[
                Message(role=role, content=text) for turn in example for role, text in zip(roles, turn, strict=True)
            ]
        )

    def count(self) -> int:
        """Returns the number of conversations."""
        return self.num_rows


def make_chats(split: str, num_rows: int, seed: int) -> Iterator[list[Turn]]:
    """Yields `num_rows` conversations of one to three questions about words of `split`; a seed determines them."""
    check_split(split)
    rng = random.Random(f"chats {split} {seed}")  # a text as seed gives the same numbers in every process
    for _ in range(num_rows):
        yield [_make_turn(rng, split) for _ in range(rng.randint(1, _MAX_TURNS))]


def make_questions(split: str, num_questions: int, seed: int = 0) -> list[Turn]:
    """Returns distinct questions with their answers, about words of `split`."""
    check_split(split)
    rng = random.Random(f"questions {split} {seed}")
    questions: dict[str, str] = {}  # drops repeated questions, and keeps the order
    while len(questions) < num_questions:
        question, answer = _make_turn(rng, split)
        questions[question] = answer
    return list(questions.items())


def split_of(word: str) -> str:
    """Returns the split of a word."""
    share = zlib.crc32(word.encode()) % 100  # `hash` of a text differs between processes
    return next(split for split, shares in _SHARES.items() if share in shares)


def check_arguments(split: str, num_rows: int, seed: int) -> None:
    """Raises ConfigError for an unknown split, and unless the others are whole numbers, of rows at least 1."""
    for name, value, least in (("num_rows", num_rows, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"dataset_kwargs.{name}: got {value!r}, must be a whole number, {least} or more")
    check_split(split)


def check_split(split: str) -> None:
    """Raises ConfigError if the split is unknown."""
    if split not in _SHARES:
        hint = did_you_mean(split, _SHARES) or f"; there are {', '.join(_SHARES)}"
        raise ConfigError(f"oumi/quickstart: unknown split '{split}'{hint}")


def _make_turn(rng: random.Random, split: str) -> Turn:
    word = make_word(rng, split)
    if rng.random() < 0.5:
        return f"Spell {word} backwards.", word[::-1]
    return f"How many letters are in {word}?", str(len(word))


def make_word(rng: random.Random, split: str) -> str:
    """Returns a word of a split."""
    while split_of(word := _make_word(rng)) != split:  # words of other splits are drawn again
        pass
    return word


def _make_word(rng: random.Random) -> str:
    """Returns a word: random letters, or with probability 0.5 alternating vowels and consonants."""
    length = rng.choice(_LENGTHS)
    if rng.random() < 0.5:
        return "".join(rng.choices(_LETTERS, k=length))
    first = rng.randrange(2)
    return "".join(rng.choice(_VOWELS if (i + first) % 2 else _CONSONANTS) for i in range(length))
