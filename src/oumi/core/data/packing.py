# SPDX-License-Identifier: Apache-2.0
"""Rows of a fixed length, each filled with several documents that never see each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oumi.core.data.mixture import Mixture
from oumi.core.types.example import Example


def best_fit(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Returns which items share a row: each, longest first, goes where it leaves the least room.

    "Best fit decreasing" (Johnson 1973) needs at most 11/9 of the fewest rows. The free places are kept as the
    bits of one number, so a row is found in time that does not depend on how many there are.

    Args:
        lengths: Tokens of each item.
        capacity: Tokens of a row; a longer item is an error of the caller.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r: some row has room for r tokens
    sizes = np.asarray(lengths)
    assert not len(sizes) or sizes.max() <= capacity, "items are cut to the capacity before"
    for item in np.argsort(-sizes, kind="stable").tolist():
        length = int(sizes[item])
        fitting = rooms >> length
        if fitting:
            room = length + ((fitting & -fitting).bit_length() - 1)
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    return rows


class Packed:
    """A mixture whose examples are packed into rows of a fixed length, the same rows every epoch."""

    def __init__(self, mixture: Mixture, capacity: int) -> None:
        """Packs an epoch's examples into rows of at most `capacity` tokens."""
        self.parts = mixture.parts
        self._mixture = mixture
        lengths = mixture.lengths()
        self._rows = best_fit(lengths, capacity)
        self.empty_share = 1 - int(lengths.sum()) / (len(self._rows) * capacity) if self._rows else 0.0
        """Positions that would be padding if rows were of one length; none of them is computed."""

    def __len__(self) -> int:
        return len(self._rows)

    def group(self, index: int) -> list[Example]:
        """Returns the examples of one row."""
        return [self._mixture[i] for i in self._rows[index]]

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self._mixture.highest_token
