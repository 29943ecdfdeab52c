# SPDX-License-Identifier: Apache-2.0
"""The questions that the embedded model learns from."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer

from oumi.core.errors import ConfigError
from oumi.core.types.conversation import Role
from oumi.datasets.sft.quickstart import QuickstartDataset, make_chats, make_questions, split_of
from oumi.embedded.build import MAX_LENGTH, TINY

SPLITS = ("train", "validation", "test")


def test_same_seed_gives_the_same_chats_and_another_seed_others():
    assert list(make_chats("train", 50, 1)) == list(make_chats("train", 50, 1))
    assert list(make_chats("train", 50, 1)) != list(make_chats("train", 50, 2))
    assert make_questions("test", 50, 1) == make_questions("test", 50, 1)


def test_more_chats_of_a_seed_begin_with_the_fewer():
    assert list(make_chats("train", 60, 1))[:20] == list(make_chats("train", 20, 1))


@pytest.mark.slow
def test_splits_share_no_word_whatever_the_seeds():
    words = {
        split: {_word(q) for seed in range(3) for chat in make_chats(split, 3000, seed) for q, _ in chat}
        for split in SPLITS
    }
    assert all(words[split] for split in SPLITS)
    assert not words["train"] & words["test"]
    assert not words["train"] & words["validation"]
    assert not words["validation"] & words["test"]
    assert {split_of(word) for word in words["test"]} == {"test"}


def test_every_answer_is_right():
    for question, answer in make_questions("train", 500):
        word = _word(question)
        assert answer == (word[::-1] if question.startswith("Spell") else str(len(word)))


def test_questions_are_all_different_and_half_of_them_are_to_be_spelled():
    questions = [question for question, _ in make_questions("test", 400)]
    assert len(set(questions)) == 400
    assert 150 < sum(question.startswith("Spell") for question in questions) < 250


def test_longest_chat_fits_the_embedded_model():
    tokenizer = AutoTokenizer.from_pretrained(str(TINY))
    word = "abcdefgh"
    chat = [("user", f"How many letters are in {word}?"), ("assistant", str(len(word)))] * 3
    ids = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in chat])["input_ids"]
    assert len(ids) <= MAX_LENGTH


def test_data_set_yields_its_rows_as_conversations_with_their_place():
    data = QuickstartDataset(num_rows=5, seed=3, split="validation", dataset_name="oumi/quickstart")
    rows = list(data.rows())
    assert data.count() == len(rows) == 5
    for i, (row, turns) in enumerate(zip(rows, make_chats("validation", 5, 3), strict=True)):
        assert [message.content for message in row.value.messages] == [text for turn in turns for text in turn]
        assert [message.role for message in row.value.messages] == [Role.USER, Role.ASSISTANT] * len(turns)
        assert str(row.source) == f"oumi/quickstart[validation]:{i}"


def test_unknown_split_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        QuickstartDataset(split="trian")
    with pytest.raises(ConfigError, match="there are train, validation, test"):
        make_questions("zzz", 1)


def test_no_rows_are_refused():
    with pytest.raises(ConfigError, match="num_rows: got 0"):
        QuickstartDataset(num_rows=0)


def _word(question: str) -> str:
    match = re.fullmatch(r"Spell (\w+) backwards\.|How many letters are in (\w+)\?", question)
    assert match, question
    return match[1] or match[2]
