# SPDX-License-Identifier: Apache-2.0
"""One flat stream of tokens, documents end to end without padding; and what a model says of it.

Shape letters: T tokens of the stream, D documents, R rows, N trained positions, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from oumi.core.types.example import Example, Source

IGNORED = -100
"""Target of a position that is not trained, as in torch.nn.functional.cross_entropy."""


@dataclass(frozen=True)
class Batch:
    """The documents of one micro-batch, and what is to be learned from them."""

    tokens: torch.Tensor
    """Token ids [T], int64."""
    positions: torch.Tensor
    """Position of each token in its document [T], int64."""
    targets: torch.Tensor
    """The token that follows, where it is to be learned, else IGNORED [T], int64."""
    trained: torch.Tensor
    """Where `targets` is not IGNORED [N], int64, ascending."""
    offsets: tuple[int, ...]
    """Where each document begins, and where the last one ends [D + 1]."""
    sources: tuple[Source, ...]
    """Where each document came from [D]."""
    rows: tuple[int, ...]
    """Number of the first document of each row, and behind the last row that of all documents [R + 1].

    A row is what a method learns from as a whole: a chat, or the two documents of a preference pair."""
    columns: tuple[Mapping[str, Any], ...]
    """What a method needs of each row beside tokens, by name [R]: for instance the label of a judged completion."""
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What a model that sees images takes beside tokens, by its name: of all the images, in order."""
    num_images: tuple[int, ...] = ()
    """Images of each document [D], empty if there are none at all."""
    mismatched: Batch | None = None
    """As many rows, each the prompt of the row here with the answer of another row; for methods that compare both."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each document has [D]."""
        return tuple(b - a for a, b in pairwise(self.offsets))

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.rows) - 1

    @property
    def num_targets(self) -> int:
        """How many positions are trained."""
        return len(self.trained)

    @property
    def num_tokens(self) -> int:
        """How many tokens the rows hold."""
        return len(self.tokens) if self.num_rows else 0

    def to(self, device: torch.device) -> Batch:
        """Returns the same batch on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "positions", "targets", "trained")
        }
        features = {name: value.to(device, non_blocking=True) for name, value in self.features.items()}
        mismatched = None if self.mismatched is None else self.mismatched.to(device)
        return replace(self, **moved, features=features, mismatched=mismatched)

    def documents(self) -> Iterator[Batch]:
        """Yields each document as a batch of its own, without its images."""
        for i in range(len(self.sources)):
            yield self._part(i, i + 1, rows=(0, 1), columns=({},))

    def cut(self, num_parts: int) -> list[Batch]:
        """Returns the rows, in order, as at most `num_parts` batches of about as many tokens each.

        No row is parted. A batch with images stays whole: which features belong to which of them, only the model knows.
        """
        if num_parts == 1 or self.num_images or not self.num_rows:
            return [self]
        row_offsets = np.array([self.offsets[document] for document in self.rows])
        places = [self.num_tokens * i / num_parts for i in range(num_parts + 1)]
        edges = sorted({int(np.argmin(np.abs(row_offsets - place))) for place in places})
        return [self.part(first, last) for first, last in pairwise(edges)]

    def part(self, first: int, last: int) -> Batch:
        """Returns the rows from `first` to before `last`, without their images."""
        begin, end = self.rows[first], self.rows[last]
        rows = tuple(document - begin for document in self.rows[first : last + 1])
        part = self._part(begin, end, rows, self.columns[first:last])
        return part if self.mismatched is None else replace(part, mismatched=self.mismatched.part(first, last))

    def document_numbers(self) -> torch.Tensor:
        """Returns the number of the document in which each trained position is [N]."""
        ends = torch.tensor(self.offsets[1:], device=self.trained.device)
        return torch.bucketize(self.trained, ends, right=True)

    def _part(self, first: int, last: int, rows: tuple[int, ...], columns: tuple[Mapping[str, Any], ...]) -> Batch:
        """Returns the documents from `first` to before `last`."""
        start, end = self.offsets[first], self.offsets[last]
        targets = self.targets[start:end]
        return Batch(
            tokens=self.tokens[start:end],
            positions=self.positions[start:end],
            targets=targets,
            trained=(targets != IGNORED).nonzero()[:, 0],
            offsets=tuple(place - start for place in self.offsets[first : last + 1]),
            sources=self.sources[first:last],
            rows=rows,
            columns=columns,
        )


def empty_batch() -> Batch:
    """Returns a batch without rows, for a rank that has none left where others have: all take as many micro-batches.

    It holds one token that belongs to no row, since a model cannot take none.
    """
    token = torch.zeros(1, dtype=torch.int64)
    return Batch(
        tokens=token,
        positions=token,
        targets=torch.full_like(token, IGNORED),
        trained=token[:0],
        offsets=(0, 1),
        sources=(Source("", "no row", 0),),
        rows=(0,),
        columns=(),
    )


def collate(examples: Sequence[Example]) -> Batch:
    """Joins examples end to end; each document predicts its own tokens only."""
    lengths = [length for example in examples for length in example.lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.concatenate([example.tokens for example in examples]).astype(np.int64)
    is_target = np.concatenate([example.is_target for example in examples])
    is_target[offsets[:-1]] = False  # nothing in the document predicts its first token
    targets = np.full(len(tokens), IGNORED, dtype=np.int64)
    targets[:-1][is_target[1:]] = tokens[1:][is_target[1:]]
    positions = np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(targets),
        trained=torch.from_numpy(np.flatnonzero(is_target[1:])),
        offsets=tuple(offsets.tolist()),
        sources=tuple(source for example in examples for source in example.sources),
        rows=(0, *np.cumsum([len(example.starts) for example in examples]).tolist()),
        columns=tuple(example.columns for example in examples),
    )


@dataclass(frozen=True)
class LmHead:
    """What turns hidden states h into logits: softcap * tanh(scale * (h W^T + b) / softcap)."""

    weight: torch.Tensor
    """[V, d]"""
    bias: torch.Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    """None: logits are not capped."""

    def logits(self, states_Nd: torch.Tensor) -> torch.Tensor:
        """Returns the logits [N, V] of hidden states."""
        logits_NV = torch.nn.functional.linear(states_Nd, self.weight, self.bias) * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)


@dataclass(frozen=True)
class Prediction:
    """What a model says of the trained positions: their logits, or the states that a head turns into them."""

    states: torch.Tensor
    """Hidden states [N, d]; the logits [N, V] themselves where there is no head."""
    head: LmHead | None = None

    def logits(self) -> torch.Tensor:
        """Returns the logits [N, V]."""
        return self.states if self.head is None else self.head.logits(self.states)
