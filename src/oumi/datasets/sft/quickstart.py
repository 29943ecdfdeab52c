# SPDX-License-Identifier: Apache-2.0
"""Questions about words, made from a seed: what the embedded model learns in `oumi quickstart`.

A word belongs to one split only, by its digest. So a question of the test split asks about a word that no
training row holds, whatever the seeds.
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
"""Which of a hundred digests belong to a split."""

_LENGTHS = (3, 4, 5, 6, 6, 7, 7, 8, 8, 8)
"""Letters of a word; long ones are harder, so there are more of them."""

_MAX_TURNS = 3
_LETTERS, _VOWELS, _CONSONANTS = "abcdefghijklmnopqrstuvwxyz", "aeiou", "bcdfghjklmnpqrstvwxyz"


class QuickstartDataset(BaseSftDataset):
    """Chats of one to three questions each: spell a word backwards, count its letters."""

    default_dataset = "oumi/quickstart"

    def __init__(self, *, num_rows: int = 14_400, seed: int = 0, **named: Any) -> None:
        """Takes how many chats to make, and from which seed; the rest as every data set does."""
        super().__init__(**named)
        for name, value, least in (("num_rows", num_rows, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"dataset_kwargs.{name}: got {value!r}, must be a whole number, {least} or more")
        check_split(self.split or "train")
        self.num_rows = num_rows
        self.seed = seed

    def raw_rows(self) -> Iterator[Row]:
        """Yields the turns of each chat, with its index as its line."""
        split = self.split or "train"
        for i, turns in enumerate(make_chats(split, self.num_rows, self.seed)):
            yield Row(turns, Source(self.dataset_name, f"{self.dataset_name}[{split}]", i))

    def transform_conversation(self, example: Any) -> Conversation:
        """Returns turns as a conversation."""
        roles = (Role.USER, Role.ASSISTANT)
        return Conversation(
            messages=[
                Message(role=role, content=text) for turn in example for role, text in zip(roles, turn, strict=True)
            ]
        )

    def count(self) -> int:
        """Returns how many chats there are."""
        return self.num_rows


def make_chats(split: str, num_rows: int, seed: int) -> Iterator[list[Turn]]:
    """Yields `num_rows` chats of one to three turns about words of `split`, the same for the same seed."""
    check_split(split)
    rng = random.Random(f"chats {split} {seed}")
    for _ in range(num_rows):
        yield [_make_turn(rng, split) for _ in range(rng.randint(1, _MAX_TURNS))]


def make_questions(split: str, num_questions: int, seed: int = 0) -> list[Turn]:
    """Returns different questions with their answers, about words that belong to `split`."""
    check_split(split)
    rng = random.Random(f"questions {split} {seed}")
    questions: dict[str, str] = {}
    while len(questions) < num_questions:
        question, answer = _make_turn(rng, split)
        questions[question] = answer
    return list(questions.items())


def split_of(word: str) -> str:
    """Returns the split that a word belongs to."""
    share = zlib.crc32(word.encode()) % 100
    return next(split for split, shares in _SHARES.items() if share in shares)


def check_split(split: str) -> None:
    """Raises ConfigError unless there is such a split."""
    if split not in _SHARES:
        hint = did_you_mean(split, _SHARES) or f"; there are {', '.join(_SHARES)}"
        raise ConfigError(f"oumi/quickstart: unknown split '{split}'{hint}")


def _make_turn(rng: random.Random, split: str) -> Turn:
    word = _make_word(rng)
    while split_of(word) != split:
        word = _make_word(rng)
    if rng.random() < 0.5:
        return f"Spell {word} backwards.", word[::-1]
    return f"How many letters are in {word}?", str(len(word))


def _make_word(rng: random.Random) -> str:
    """Returns a word: one time in two one that could be spoken, else any letters."""
    length = rng.choice(_LENGTHS)
    if rng.random() < 0.5:
        return "".join(rng.choices(_LETTERS, k=length))
    first = rng.randrange(2)
    return "".join(rng.choice(_VOWELS if (i + first) % 2 else _CONSONANTS) for i in range(length))
