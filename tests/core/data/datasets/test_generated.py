# SPDX-License-Identifier: Apache-2.0
"""Data sets that are made, not read."""

from __future__ import annotations

import time
from typing import Any

import pytest

from oumi.core.configs import DatasetParams
from oumi.core.datasets import dataset_for
from oumi.core.errors import ConfigError
from oumi.core.types.example import Row
from tests.shown import shown

FIRST = {
    "debug_sft": ["user: Hello, I am Ada number 0.", "assistant: Hello Ada number 0, nice to meet you."],
    "debug_pretraining": "Document 0. Hello, I am Ada number 0. Hello Ada number 0, nice to meet you.",
    "debug_dpo": (
        ["user: Hello, I am Ada number 0.", "assistant: Hello Ada number 0, nice to meet you."],
        ["user: Hello, I am Ada number 0.", "assistant: Go away."],
    ),
    "debug_kto": ("Hello, I am Ada number 0.|Hello Ada number 0, nice to meet you.", True),
}
SIZES = {"debug_sft": 5, "debug_pretraining": 1000, "debug_dpo": 5, "debug_kto": 5}


@pytest.mark.parametrize("name", FIRST)
def test_debug_rows_are_the_same_each_time_and_counted(name: str) -> None:
    once, again = (build(name) for _ in range(2))
    values = [row.value for row in once.rows() if isinstance(row, Row)]
    assert shown(values[0]) == FIRST[name]
    assert values == [row.value for row in again.rows() if isinstance(row, Row)]
    assert once.count() == len(once) == len(values) == SIZES[name]
    assert once.content() == again.content() != build(name, dataset_size=3).content()
    assert build(name, dataset_size=3).count() == 3
    assert str(next(once.raw_rows()).source) == f"{name}[train]:0"


@pytest.mark.parametrize("size", [0, "many"])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"dataset_size: got .+, must be a whole number"):
        build("debug_sft", dataset_size=size)


def test_quickstart_chats_are_elements_too() -> None:
    chats = build("oumi/quickstart", num_rows=3)
    assert len(chats) == chats.count() == 3
    assert [row.value for row in chats.rows()] == [chats.conversation(i) for i in range(3)]


def test_quickstart_preferences_are_the_same_words_in_another_order() -> None:
    rows = list(build("oumi/quickstart_preferences", num_rows=20).raw_rows())
    assert rows == list(build("oumi/quickstart_preferences", num_rows=20).raw_rows())
    assert all(sorted(row.value["chosen"]) == sorted(row.value["rejected"]) for row in rows)
    questions = {row.value["prompt"] for row in rows}
    params = DatasetParams(
        dataset_name="oumi/quickstart_preferences", split="validation", dataset_kwargs={"num_rows": 200}
    )
    held_out = dataset_for(params).raw_rows()
    assert not questions & {row.value["prompt"] for row in held_out}


@pytest.mark.parametrize("size", [0, "many"])
def test_a_number_of_pairs_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"num_rows: got .+, must be a whole number"):
        build("oumi/quickstart_preferences", num_rows=size)


def test_vectors_with_classes_are_a_data_set_of_torch_and_no_rows() -> None:
    import torch

    from oumi.datasets import DebugClassificationDataset

    vectors = DebugClassificationDataset(dataset_size=4, feature_dim=3, num_classes=2, preprocessing_time_ms=20)
    began = time.monotonic()
    batch = next(iter(torch.utils.data.DataLoader(vectors, batch_size=4)))
    assert 0.08 <= time.monotonic() - began < 4
    assert batch["features"].shape == (4, 3)
    assert set(batch["labels"].tolist()) <= {0, 1}
    assert torch.equal(DebugClassificationDataset(dataset_size=4, feature_dim=3).features, vectors.features)
    with pytest.raises(ConfigError, match="has no rows to train on"):
        build("debug_classfication")


def build(name: str, **kwargs: Any) -> Any:
    return dataset_for(DatasetParams(dataset_name=name, dataset_kwargs=kwargs))
