# SPDX-License-Identifier: Apache-2.0
"""Rows of a fixed length, each filled with several documents that never see each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oumi.core.data.pipeline.mixture import Mixture
from oumi.core.types.example import Example


def best_fit(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Returns which items share a row, by `rows_of_items`."""
    rows = rows_of_items(lengths, capacity)
    order = np.argsort(rows, kind="stable")
    return [one.tolist() for one in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1)] if len(rows) else []


def rows_of_items(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int32]:
    """Returns in which row each item goes: each, longest first, where it leaves the least room.

    "Best fit decreasing" (Johnson 1973) needs at most 11/9 of the fewest rows. The free places are kept as the
    bits of one number, so a row is found in time that does not depend on how many there are.

    Args:
        lengths: Tokens of each item.
        capacity: Tokens of a row; a longer item is an error of the caller.
    """
    sizes = np.asarray(lengths)
    assert not len(sizes) or sizes.max() <= capacity, "items are cut to the capacity before"
    found = np.empty(len(sizes), dtype=np.int32)
    with_room: dict[int, list[int]] = defaultdict(list)
    num_rows = rooms = 0  # bit r of `rooms`: some row has room for r tokens
    order = np.argsort(-sizes, kind="stable")
    for item in order:
        length = int(sizes[item])
        fitting = rooms >> length
        if fitting:
            room = length + ((fitting & -fitting).bit_length() - 1)
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        found[item] = row
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    return found


class Packed:
    """A mixture whose examples are packed into rows of a fixed length, the same rows every epoch."""

    def __init__(self, mixture: Mixture, capacity: int) -> None:
        """Packs an epoch's examples into rows of at most `capacity` tokens."""
        self.parts = mixture.parts
        self._mixture = mixture
        lengths = mixture.lengths()
        rows = rows_of_items(lengths, capacity)
        self._items = np.argsort(rows, kind="stable")
        self._ends = np.cumsum(np.bincount(rows))
        self.empty_share = 1 - int(lengths.sum()) / (len(self) * capacity) if len(self) else 0.0
        """Positions that would be padding if rows were of one length; none of them is computed."""

    def __len__(self) -> int:
        return len(self._ends)

    def group(self, index: int) -> list[Example]:
        """Returns the examples of one row."""
        first = self._ends[index - 1] if index else 0
        return [self._mixture[i] for i in self._items[first : self._ends[index]].tolist()]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens each row has."""
        starts = np.concatenate([[0], self._ends[:-1]]).astype(np.int64)
        found: npt.NDArray[np.int64] = np.add.reduceat(self._mixture.lengths()[self._items], starts)
        return found

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self._mixture.highest_token
