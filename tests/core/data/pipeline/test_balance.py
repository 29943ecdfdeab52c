# SPDX-License-Identifier: Apache-2.0
"""The rows of a step are divided among ranks by their tokens."""

from __future__ import annotations

import numpy as np
import pytest

from oumi.core.data.pipeline.balance import micro_batches_of_ranks


@pytest.mark.parametrize(("num_rows", "size", "world_size"), [(64, 4, 4), (63, 8, 2), (5, 2, 4), (1, 3, 3), (48, 1, 8)])
def test_every_row_is_on_one_rank_and_ranks_have_as_many_micro_batches(
    num_rows: int, size: int, world_size: int
) -> None:
    lengths = np.random.default_rng(num_rows).integers(1, 500, num_rows).tolist()
    shares = micro_batches_of_ranks(list(range(num_rows)), lengths, size, world_size)
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(num_rows))
    assert len(shares) == world_size
    assert len({len(share) for share in shares}) == 1
    assert max(len(batch) for share in shares for batch in share) <= size


def test_ranks_have_about_as_many_tokens_at_a_time_and_in_all() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.5, 256).astype(int).tolist()
    shares = micro_batches_of_ranks(lengths, lengths, 8, 4)  # 8 micro-batches a rank
    tokens = np.array([[sum(batch) for batch in share] for share in shares])
    in_order = np.array(lengths).reshape(8, 4, 8).sum(-1).T
    waste, waste_in_order = (float(1 - sums.sum() / (sums.max(0).sum() * 4)) for sums in (tokens, in_order))
    assert waste < 0.05 < waste_in_order
    assert tokens.sum(1).max() / tokens.sum(1).min() < 1.02


def test_one_rank_takes_its_rows_in_order() -> None:
    assert micro_batches_of_ranks([3, 1, 2, 5, 4], [1, 9, 1, 9, 1], 2, 1) == [[[3, 1], [2, 5], [4]]]
