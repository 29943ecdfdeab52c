# SPDX-License-Identifier: Apache-2.0
"""Rows of at most a fixed length, each filled with several examples that do not attend to each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oumi.core.data.pipeline.mixture import Mixture
from oumi.core.types.example import Example


def best_fit(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Returns the indices of the items of each row, as `rows_of_items` distributes them."""
    rows = rows_of_items(lengths, capacity)
    if not len(rows):
        return []
    order = np.argsort(rows, kind="stable")
    return [items.tolist() for items in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1)]


def rows_of_items(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int32]:
    """Returns the row of each item [N]. Items are placed from the longest on, each where it leaves the least room.

    "Best fit decreasing" (Johnson 1973) needs at most 11/9 of the smallest possible number of rows.

    Args:
        lengths: Tokens of each item [N].
        capacity: Tokens of a row; no item may be longer.
    """
    sizes = np.asarray(lengths)
    assert not len(sizes) or sizes.max() <= capacity, "an item is longer than a row"
    row_of = np.empty(len(sizes), dtype=np.int32)
    rows_by_room: dict[int, list[int]] = defaultdict(list)
    # Bit r of `rooms`: some row has room for r tokens. So the search does not depend on the number of rows.
    num_rows = rooms = 0
    # Stable, so that items of one length keep their order on every machine.
    for item in np.argsort(-sizes, kind="stable"):
        length = int(sizes[item])
        # Bit r of `fitting`: some row has r tokens more room than the item needs.
        fitting = rooms >> length
        if fitting:
            room = length + ((fitting & -fitting).bit_length() - 1)  # the lowest bit
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        row_of[item] = row
        rows_by_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return row_of


class Packed:
    """A mixture whose examples are packed into rows, which are the same in every epoch."""

    def __init__(self, mixture: Mixture, capacity: int) -> None:
        """Packs an epoch's examples into rows of at most `capacity` tokens."""
        self.parts = mixture.parts
        self._mixture = mixture
        lengths = mixture.lengths()
        rows = rows_of_items(lengths, capacity)
        # Items by row: those of row r are the ones from `_ends[r - 1]` to `_ends[r]`.
        self._items = np.argsort(rows, kind="stable")
        self._ends = np.cumsum(np.bincount(rows))
        self.empty_share = 1 - int(lengths.sum()) / (len(self) * capacity) if len(self) else 0.0
        """Share of positions that would be padding if rows were of one length. A flat batch has no padding."""

    def __len__(self) -> int:
        return len(self._ends)

    def group(self, index: int) -> list[Example]:
        """Returns the examples of a row."""
        first = self._ends[index - 1] if index else 0
        return [self._mixture[i] for i in self._items[first : self._ends[index]].tolist()]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each row [R]."""
        # The items are sorted by row, so the sum of each row is that of a slice.
        starts = np.concatenate([[0], self._ends[:-1]]).astype(np.int64)
        lengths: npt.NDArray[np.int64] = np.add.reduceat(self._mixture.lengths()[self._items], starts)
        return lengths

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self._mixture.highest_token
