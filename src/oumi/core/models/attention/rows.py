# SPDX-License-Identifier: Apache-2.0
"""Documents of a flat batch as padded rows, for layers that mix tokens by a state or a convolution.

Documents of similar length share a group, so that a long one does not pad all others.

Shape letters: T tokens of the stream, D documents and S places for each in a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from oumi.core.models.attention.cpu import Part

_CALL_COST = 64
"""Padded places that cost as much as a call of the layer, roughly."""


class Rows:
    """How a flat batch is split into rows."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        """Computes the places of tokens.

        Args:
            parts: Tokens of each document, and those of another that it continues, which its row begins with.
            device: Device of the streams.
        """
        sources = [np.r_[prefix or slice(0, 0), own] for own, prefix in parts]
        lengths = np.array([len(tokens) for tokens in sources])
        order = np.argsort(lengths, kind="stable")
        groups = [order[first:last] for first, last in pairwise([0, *sorted(_cuts(lengths[order], 0)), len(order)])]
        self.shapes = [(len(group), int(lengths[group[-1]])) for group in groups]
        """Documents, and places of each [D, S], of the groups that share a call."""
        self.num_places = sum(count * longest for count, longest in self.shapes)
        widths = np.empty_like(lengths)
        widths[order] = np.repeat([longest for _, longest in self.shapes], [count for count, _ in self.shapes])
        starts = np.empty_like(lengths)
        starts[order] = np.cumsum(widths[order]) - widths[order]
        filled = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
        is_own = np.concatenate(
            [np.arange(n) >= n - (own.stop - own.start) for n, (own, _) in zip(lengths, parts, strict=True)]
        )
        self._copies = self._filled = self._places_T = None
        # Documents of one length, or a single one: the stream is the rows.
        if len(filled) < self.num_places or not is_own.all() or len(groups) > 1:
            self._filled = torch.from_numpy(filled).to(device)
            self._places_T = torch.from_numpy(filled[is_own]).to(device)
        if not is_own.all():
            self._copies = torch.from_numpy(np.concatenate(sources)).to(device)

    def split(self, stream: torch.Tensor) -> list[torch.Tensor]:
        """Returns the rows [D, S, ...] of each group of a stream [1, T, ...], padded with zeros."""
        tokens = stream[0] if self._copies is None else stream[0].index_select(0, self._copies)
        if self._filled is not None:
            padded = tokens.new_zeros(self.num_places, *tokens.shape[1:])
            tokens = padded.index_copy(0, self._filled, tokens)
        sizes = [count * longest for count, longest in self.shapes]
        return [part.unflatten(0, shape) for part, shape in zip(tokens.split(sizes), self.shapes, strict=True)]

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Returns the stream [1, T, ...] of the groups' rows [D, S, ...]."""
        places = torch.cat([part.flatten(0, 1) for part in parts]) if len(parts) > 1 else parts[0].flatten(0, 1)
        return (places if self._places_T is None else places.index_select(0, self._places_T))[None]


def _cuts(lengths: npt.NDArray[np.int64], first: int) -> Iterator[int]:
    """Yields where ascending lengths, of which the first has the number `first`, are parted into groups."""
    # If the first i rows get a call of their own, each of them is shorter by this much.
    savings = np.arange(1, len(lengths)) * (lengths[-1] - lengths[:-1])
    if len(savings) and savings.max() > _CALL_COST:
        cut = int(savings.argmax()) + 1
        yield first + cut
        yield from _cuts(lengths[:cut], first)
        yield from _cuts(lengths[cut:], first + cut)
