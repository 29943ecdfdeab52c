# SPDX-License-Identifier: Apache-2.0
"""Tokens of a batch that need not be computed: prompts that documents of a row have in common, and untrained ends.

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


def without_ends(batch: Batch) -> Batch:
    """Returns a batch without the tokens behind the last trained position of each document, which no loss depends on.

    The last token of a document is only a target, and so is the end of a turn where the text behind it is not trained.
    A document without trained positions keeps its first token, so that all documents stay.
    """
    offsets, trained = np.array(batch.offsets), batch.trained.numpy()
    counts = np.searchsorted(trained, offsets)
    ends = offsets[:-1] + 1
    has_trained = counts[1:] > counts[:-1]
    ends[has_trained] = trained[counts[1:][has_trained] - 1] + 1
    if (ends == offsets[1:]).all():
        return batch
    is_kept = np.arange(len(batch.tokens)) < np.repeat(ends, np.diff(offsets))
    kept = torch.from_numpy(np.flatnonzero(is_kept))
    return replace(
        batch,
        tokens=batch.tokens[kept],
        positions=batch.positions[kept],
        targets=batch.targets[kept],
        trained=torch.from_numpy((np.cumsum(is_kept) - 1)[trained]),
        offsets=(0, *np.cumsum(ends - offsets[:-1]).tolist()),
    )


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
    kept = torch.from_numpy(np.flatnonzero(is_kept)).to(batch.tokens.device)
    lengths = [length - count for length, count in zip(batch.lengths, num_shared, strict=True)]
    shorter = replace(
        batch,
        tokens=batch.tokens[kept],
        positions=batch.positions[kept],
        targets=batch.targets[kept],
        trained=torch.from_numpy(places_T).to(batch.trained.device)[batch.trained],
        offsets=(0, *np.cumsum(lengths).tolist()),
    )
    return shorter, tuple(prefixes)


def _common_tokens(batch: Batch) -> Iterator[int]:
    """Yields with how many tokens each document begins as the first one of its row does; 0 for the first, and for few.

    The last token of a document is never counted, so that none becomes empty.
    """
    tokens, lengths = batch.tokens.cpu().numpy(), batch.lengths
    for first, end in pairwise(batch.rows):
        for i in range(first, end):
            length = min(lengths[first], lengths[i]) - 1
            pair = (tokens[batch.offsets[k] : batch.offsets[k] + length] for k in (first, i))
            differs = np.not_equal(*pair)
            count = int(differs.argmax()) if differs.any() else length
            yield count if i > first and count >= _FEWEST else 0
