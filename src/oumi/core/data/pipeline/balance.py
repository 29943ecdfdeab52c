# SPDX-License-Identifier: Apache-2.0
"""Divides the rows of a step among ranks, so that all have about as many tokens at a time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TypeVar

Row = TypeVar("Row")


def micro_batches_of_ranks(
    rows: Sequence[Row], lengths: Sequence[int], size: int, world_size: int
) -> list[list[list[Row]]]:
    """Returns the micro-batches of each rank [rank, micro-batch, row], as many on all ranks; some may be empty.

    A step is a sum over its rows, so any division gives the same gradients. A single rank takes its rows in order.
    Several wait for each other at each micro-batch: so those that are computed at a time are made equally long, and
    then the sums of the ranks. (The longest row goes into the shortest micro-batch: LPT, Graham 1969.)

    Args:
        rows: The rows of a step, of all ranks.
        lengths: Tokens of each row.
        size: Rows of a micro-batch, at most.
        world_size: Number of ranks.
    """
    if world_size == 1:
        return [[list(rows[i : i + size]) for i in range(0, len(rows), size)]]
    count = -(-len(rows) // (size * world_size)) * world_size
    shortest = [(0, number) for number in range(count)]
    batches: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for i in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        _, number = heapq.heappop(shortest)
        batches[number].append(i)
        tokens[number] += lengths[i]
        if len(batches[number]) < size:  # a full one gets no more
            heapq.heappush(shortest, (tokens[number], number))
    order = sorted(range(count), key=lambda number: (-tokens[number], number))
    shares: list[list[list[Row]]] = [[] for _ in range(world_size)]
    sums = [0] * world_size
    for first in range(0, count, world_size):
        # The rank with the fewest tokens so far takes the longest of those that are computed at a time.
        takers = sorted(range(world_size), key=lambda other: (sums[other], other))
        for taker, number in zip(takers, order[first : first + world_size], strict=True):
            sums[taker] += tokens[number]
            shares[taker].append([rows[i] for i in sorted(batches[number])])
    return shares
