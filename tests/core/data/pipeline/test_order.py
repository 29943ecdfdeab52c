# SPDX-License-Identifier: Apache-2.0
"""The order of rows is arithmetic: any step of any epoch is found at once, and every row is trained once an epoch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.data.pipeline.loader import Loader, in_order, most_tokens
from oumi.core.data.pipeline.mixture import Mixture, Part, permute
from oumi.core.plan.parts import StepsPlan
from tests.runs import table_of, tiny_mixture, tiny_table


def order(length: int, seed: int, epoch: int) -> list[int]:
    return permute(np.arange(length), length, seed, epoch).tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_and_any_part_of_it_is_found_alone(length: int, seed: int, epoch: int) -> None:
    rows = order(length, seed, epoch)
    assert sorted(rows) == list(range(length))
    some = np.array([length - 1, length // 2, 0])
    assert permute(some, length, seed, epoch).tolist() == [rows[i] for i in some]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [order(100, seed, epoch) for seed in (0, 1, 42) for epoch in (0, 1, 2)]
    assert len({tuple(rows) for rows in orders}) == 9
    for a in orders:
        for b in orders:
            same = sum(x == y for x, y in zip(a, b, strict=True))
            assert a is b or same < 12, "two random orders agree in about one place"


@pytest.mark.sample(1)
@pytest.mark.parametrize("length", [3, 5, 17, pytest.param(100, marks=pytest.mark.slow)])
def test_every_row_comes_first_equally_often(length: int) -> None:
    num_orders = 100 * length
    first = np.array([permute(np.array([0]), length, seed, 0)[0] for seed in range(num_orders)])
    counts = np.bincount(first, minlength=length)
    chi_square = float(((counts - 100) ** 2 / 100).sum())
    assert chi_square < length - 1 + 5 * (2 * (length - 1)) ** 0.5, "five standard deviations"


def test_the_order_is_frozen() -> None:
    assert order(10, 42, 0) == [3, 7, 6, 0, 9, 1, 2, 5, 8, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_of_steps_trains_every_row_once(num_rows: int, micro: int, accumulation: int, seed: int) -> None:
    loader = Loader(range(num_rows), StepsPlan(micro, accumulation, 1, 1, None, num_rows), seed)  # type: ignore[arg-type]
    for epoch in range(2):
        steps = [loader.rows_of(epoch * loader.steps.per_epoch + i) for i in range(loader.steps.per_epoch)]
        assert sorted(row for rows in steps for row in rows) == list(range(num_rows))
        assert all(len(rows) == micro * accumulation for rows in steps[:-1])


def test_any_step_is_found_without_those_before_it(tmp_path: Path) -> None:
    loader = Loader(tiny_mixture(tmp_path, 10), StepsPlan(2, 2, 1, 3, None, 10), seed=7)
    steps = list(islice(loader.from_step(0), 9))
    for first in (1, 3, 8):
        batches = next(loader.from_step(first))
        assert len(batches) == len(steps[first])
        for batch, expected in zip(batches, steps[first], strict=True):
            assert torch.equal(batch.tokens, expected.tokens)
            assert batch.sources == expected.sources
    assert [len(step) for step in steps[:3]] == [2, 2, 1]


def test_a_mixture_is_its_parts_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = tiny_table(tmp_path / "a", 5), tiny_table(tmp_path / "b", 3)
    mixture = Mixture([Part(first, None), Part(second, None)])
    assert len(mixture) == 8
    expected = [table[i].tokens.tolist() for table in (first, second) for i in range(len(table))]
    assert [mixture[i].tokens.tolist() for i in range(8)] == expected
    shuffled = Mixture([Part(first, 3), Part(second, None)])
    assert [shuffled[i].source.line for i in range(5)] == [i + 1 for i in order(5, 3, 0)]
    assert [shuffled[i].source.line for i in range(5, 8)] == [1, 2, 3]


def test_a_part_without_rows_takes_no_place(tmp_path: Path) -> None:
    table, empty = tiny_table(tmp_path, 2), table_of([])
    mixture = Mixture([Part(empty, 1), Part(table, None), Part(empty, None), Part(table, None), Part(empty, None)])
    assert [mixture[i].source.line for i in range(len(mixture))] == [1, 2, 1, 2]
    assert len(Mixture([])) == len(Mixture([Part(empty, None)])) == 0
    assert empty.highest_token == -1


def test_the_validation_set_is_taken_in_order(tmp_path: Path) -> None:
    lines = [source.line for batch in in_order(tiny_mixture(tmp_path, 7), 3) for source in batch.sources]
    assert lines == [1, 2, 3, 4, 5, 6, 7]


def test_the_largest_micro_batch_of_very_many_epochs_is_a_bound() -> None:
    lengths = np.arange(100)
    few, many = (StepsPlan(4, 1, 1, num_epochs=epochs, max_steps=None, num_rows=100) for epochs in (3, 150))
    orders = [lengths[permute(lengths, 100, 7, epoch)] for epoch in range(3)]
    assert most_tokens(lengths, few, seed=7) == max(int(order.reshape(-1, 4).sum(1).max()) for order in orders)
    # To order an epoch takes milliseconds; the longest four in one micro-batch are a bound for any order.
    assert most_tokens(lengths, many, seed=7) == 96 + 97 + 98 + 99
