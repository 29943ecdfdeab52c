# SPDX-License-Identifier: Apache-2.0
"""What an epoch draws from several data sets: shares, repeats, packed rows, the same on any number of ranks."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.data.pipeline.loader import Loader
from oumi.core.data.pipeline.mixture import Mixture, Part, draws_of
from oumi.core.data.pipeline.packing import Packed, best_fit
from oumi.core.errors import ConfigError, DataError
from oumi.core.plan.parts import StepsPlan
from oumi.core.train import train
from oumi.core.types.example import Example, Source
from tests.runs import losses, table_of, tiny_config, weights
from tests.tiny import write_chats

SHARES = (
    st.lists(st.integers(0, 20), min_size=1, max_size=5)
    .filter(any)
    .map(lambda weights: [x / sum(weights) for x in weights])
)


def numbered(length: int, name: str = "set", num_tokens: int = 3) -> list[Example]:
    """Returns rows whose lines are their numbers."""
    tokens, is_target = np.arange(num_tokens, dtype=np.int32), np.ones(num_tokens, dtype=np.bool_)
    return [Example(tokens, is_target, Source(name, f"{name}.jsonl", i)) for i in range(length)]


@settings(max_examples=300, deadline=None)
@given(SHARES, st.lists(st.integers(1, 3000), min_size=5, max_size=5), st.booleans())
def test_a_mixture_has_the_shares_that_are_requested(shares: list[float], sizes: list[int], ends_early: bool) -> None:
    lengths = sizes[: len(shares)]
    draws = draws_of(lengths, shares, "first_exhausted" if ends_early else "all_exhausted")
    total = sum(draws)
    for draw, share in zip(draws, shares, strict=True):
        assert abs(draw - share * total) <= len(shares), "off by rounding at most"
    used_up = [draw >= length for draw, length, share in zip(draws, lengths, shares, strict=True) if share]
    if ends_early:
        assert all(draw <= length for draw, length in zip(draws, lengths, strict=True)), "nothing is repeated"
        next_total = (total + len(shares) + 1) * np.array(shares)
        assert any(np.array(lengths) < next_total), "a longer epoch would repeat rows"
    else:
        assert all(used_up), "every row is seen"


@pytest.mark.parametrize(
    ("lengths", "shares", "strategy", "draws"),
    [
        ([10, 20], None, "first_exhausted", [10, 20]),
        ([700, 300], [0.7, 0.3], "first_exhausted", [700, 300]),
        ([1000, 1000], [0.7, 0.3], "first_exhausted", [1000, 428]),
        ([1000, 1000], [0.7, 0.3], "all_exhausted", [2334, 1000]),
        ([10, 10], [1.0, 0.0], "first_exhausted", [10, 0]),
        ([10, 10], [1.0, 0.0], "all_exhausted", [10, 0]),
    ],
)
def test_an_epoch_ends_with_the_first_or_the_last_data_set(
    lengths: list[int], shares: list[float] | None, strategy: str, draws: list[int]
) -> None:
    assert draws_of(lengths, shares, strategy) == draws


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("num_draws", [0, 3, 10, 25])
def test_more_draws_than_rows_repeat_each_as_often(seed: int | None, num_draws: int) -> None:
    mixture = Mixture([Part(table_of(numbered(10)), seed, num_draws)])
    lines = [mixture[i].source.line for i in range(len(mixture))]
    counts = Counter(lines)
    assert len(lines) == num_draws
    assert not counts or max(counts.values()) - min(counts.get(i, 0) for i in range(10)) <= 1
    assert (lines == [i % 10 for i in range(num_draws)]) is (seed is None or num_draws == 0)
    assert seed is None or num_draws < 20 or lines[:10] != lines[10:20], "each round has an order of its own"


@pytest.mark.parametrize("size", [2, 3])
def test_the_order_does_not_depend_on_the_number_of_ranks(size: int) -> None:
    mixture = Mixture([Part(table_of(numbered(70, "a")), 3, 49), Part(table_of(numbered(30, "b")), None, 21)])
    alone = Loader(mixture, StepsPlan(2, 2 * size, 1, 3, None, 70), seed=9)
    ranks = [Loader(mixture, StepsPlan(2, 2, size, 3, None, 70), seed=9, rank=rank) for rank in range(size)]
    for step in range(2 * alone.steps.per_epoch):
        (together,) = islice(alone.from_step(step), 1)
        parts = [next(islice(rank.from_step(step), 1)) for rank in ranks]
        shared = [source for batch in together for source in batch.sources]
        assert sorted(map(str, shared)) == sorted(
            str(source) for part in parts for batch in part if batch.num_rows for source in batch.sources
        )
        assert len({len(part) for part in parts}) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_item_is_packed_once_and_no_row_overflows(lengths: list[int]) -> None:
    rows = best_fit(lengths, 50)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[item] for item in row) for row in rows)
    assert all(0 < count <= 50 for count in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 50, "no two rows would fit into one"


def test_items_that_fill_rows_exactly_leave_nothing_empty() -> None:
    assert sorted(len(row) for row in best_fit([30, 20, 25, 25, 50, 10, 40], 50)) == [1, 2, 2, 2]


def test_a_packed_epoch_states_its_empty_share_and_keeps_documents_apart() -> None:
    rows = [*numbered(4, num_tokens=5), *numbered(4, num_tokens=3)]
    packed = Packed(Mixture([Part(table_of(rows), None)]), 8)
    assert len(packed) == 4
    assert packed.empty_share == 0
    assert Packed(Mixture([Part(table_of(rows), None)]), 9).empty_share == pytest.approx(1 - 32 / 36)
    (batch,) = next(Loader(packed, StepsPlan(4, 1, 1, 1, None, 4), seed=1).from_step(0))
    assert np.diff(batch.offsets).tolist().count(5) == 4
    assert len(batch.sources) == 8


def test_rows_of_several_documents_are_kept() -> None:
    tokens, is_target = np.arange(7, dtype=np.int32), np.array([0, 1, 1, 0, 1, 0, 1], dtype=np.bool_)
    several = Example(tokens, is_target, Source("set", "x", 1), (0, 3, 5))
    table = table_of([several, *numbered(1)])
    kept = table[0]
    assert (kept.tokens.tolist(), kept.is_target.tolist(), kept.starts) == (
        tokens.tolist(), is_target.tolist(), (0, 3, 5),
    )  # fmt: skip
    assert table.highest_token == 6


MIXED = {"seed": 3, "mixture_strategy": "all_exhausted", "pack": True}


def mixed_config(folder: Path, **training: object):
    config = tiny_config(folder, **training)
    first = config.data.train.datasets[0]
    second = first.model_copy(update={"dataset_path": str(write_chats(folder / "more.jsonl", 9)), "shuffle": True})
    first.mixture_proportion, second.mixture_proportion = 0.7, 0.3
    config.data.train.datasets = [first, second]
    for key, value in MIXED.items():
        setattr(config.data.train, key, value)
    config.model.model_max_length = 256
    return config


def test_a_packed_weighted_mixture_resumed_in_its_second_epoch_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    shape = {"save_steps": 1, "num_train_epochs": 3, "gradient_accumulation_steps": 1}
    train(mixed_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    steps = len(losses(tmp_path / "whole"))
    middle = steps // 3 + 1
    assert steps % 3 == 0
    assert steps // 3 > 1
    resumed = str(tmp_path / "whole" / f"checkpoint-{middle}")
    train(mixed_config(tmp_path, **shape, output_dir=str(tmp_path / "again"), resume_from_checkpoint=resumed))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[middle:]
    ours, theirs = weights(tmp_path / "again"), weights(tmp_path / "whole")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    report = json.loads((tmp_path / "whole" / "data_report.json").read_text())["train"]
    drawn = [account["examples"]["drawn"] for account in report]
    assert drawn == [25, 10]


def test_other_shares_are_another_run(tmp_path: Path) -> None:
    train(mixed_config(tmp_path, save_steps=1, max_steps=2))
    config = mixed_config(tmp_path, max_steps=2, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    config.data.train.datasets[0].mixture_proportion = 0.6
    config.data.train.datasets[1].mixture_proportion = 0.4
    config.training.output_dir = str(tmp_path / "other")
    with pytest.raises((ConfigError, DataError), match="was trained on other rows"):
        train(config)


def test_a_sample_of_a_data_set_without_rows_is_reported(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "chats.jsonl").write_text("{nope\n")
    config.data.train.datasets[0].sample_count = 5
    config.data.train.max_rejected_rows = 1
    with pytest.raises(DataError, match="text_sft has no rows to draw from"):
        train(config)
