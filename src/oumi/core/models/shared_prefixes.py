# SPDX-License-Identifier: Apache-2.0
"""Tokens that documents of a row have in common, computed once: the prompt of a chosen and a rejected answer.

Shape letters: T tokens, U tokens that are computed, D documents, R rows, N trained positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from oumi.core.batch import Batch

_FEWEST = 8
"""Tokens of a prefix that are worth a second call of the attention kernel."""


def drops_out(model: torch.nn.Module) -> bool:
    """Returns True if a module of the model has a dropout rate above zero."""
    rates = ((name, value) for module in model.modules() for name, value in vars(module).items())
    # `p` is the rate of torch's modules; attention and others have a number such as `attention_dropout`.
    return any((name == "p" or "dropout" in name) and isinstance(rate, float) and rate > 0 for name, rate in rates)


def share_prefixes(batch: Batch) -> tuple[Batch, tuple[slice | None, ...]]:
    """Returns a batch without the tokens that a document has in common with the first one of its row.

    Causal attention gives them the same states in both documents. So the positions that are trained are those of the
    first document's prefix, which occur twice, and those of the rest.

    Returns:
        The shorter batch, whose `trained` [N] has the order of the given one and is not ascending; and of each document
        the tokens of the shorter batch that it continues, None for none [D]. If nothing is shared, the given batch and
        an empty tuple.
    """
    num_shared = list(_common_tokens(batch))
    if not any(num_shared):
        return batch, ()
    is_kept = np.ones(len(batch.tokens), dtype=np.bool_)
    for start, count in zip(batch.offsets, num_shared, strict=False):
        is_kept[start : start + count] = False
    places_T = np.cumsum(is_kept) - 1
    starts = np.array([batch.offsets[first] for first, end in pairwise(batch.rows) for _ in range(first, end)])
    prefixes: list[slice | None] = []
    for start, of_row, count in zip(batch.offsets, starts, num_shared, strict=False):
        first = int(places_T[of_row])
        prefixes.append(slice(first, first + count) if count else None)
        places_T[start : start + count] = np.arange(first, first + count)
    kept = torch.from_numpy(np.flatnonzero(is_kept))
    lengths = [length - count for length, count in zip(batch.lengths, num_shared, strict=True)]
    shorter = replace(
        batch,
        tokens=batch.tokens[kept],
        positions=batch.positions[kept],
        targets=batch.targets[kept],
        trained=torch.from_numpy(places_T)[batch.trained],
        offsets=(0, *np.cumsum(lengths).tolist()),
    )
    return shorter, tuple(prefixes)


def _common_tokens(batch: Batch) -> Iterator[int]:
    """Yields with how many tokens each document begins as the first one of its row does; 0 for the first, and for few.

    The last token of a document is never counted, so that none becomes empty.
    """
    tokens, lengths = batch.tokens.numpy(), batch.lengths
    for first, end in pairwise(batch.rows):
        for i in range(first, end):
            length = min(lengths[first], lengths[i]) - 1
            pair = (tokens[batch.offsets[k] : batch.offsets[k] + length] for k in (first, i))
            differs = np.not_equal(*pair)
            count = int(differs.argmax()) if differs.any() else length
            yield count if i > first and count >= _FEWEST else 0
