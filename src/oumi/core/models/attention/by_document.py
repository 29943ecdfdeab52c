# SPDX-License-Identifier: Apache-2.0
"""Runs a layer that mixes tokens by a state or a convolution on each document of a flat batch by itself.

Such a layer knows no documents: its state would go on from one to the next. Around it alone, the stream is split into
rows that are padded on the right, where nothing reaches the tokens before. All other layers stay without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import Cache

from oumi.core.models.attention.interface import Documents
from oumi.core.models.attention.rows import Rows


def run_by_document(modules: Iterable[torch.nn.Module], documents: Documents) -> None:
    """Makes modules see the documents of a flat batch as rows; what has no tokens [1, T, ...] is passed as it is."""
    for module in modules:
        run_whole([module])
        module.forward = partial(_by_document, module.forward, documents)  # type: ignore[method-assign, assignment]


def run_whole(modules: Iterable[torch.nn.Module]) -> None:
    """Undoes `run_by_document`."""
    for module in modules:
        if isinstance(forward := module.forward, partial) and forward.func is _by_document:
            module.forward = forward.args[0]  # type: ignore[method-assign]


# Not compiled, since it branches on the number and lengths of the documents.
@torch.compiler.disable
def _by_document(forward: Callable[..., Any], documents: Documents, /, *args: Any, **named: Any) -> Any:
    named.pop("documents", None)  # for attention; some layers would pass it to their kernels
    num_tokens = documents.offsets[-1] if documents.offsets else 0
    leaves, structure = tree_flatten((args, named))
    are_streams = [isinstance(leaf, torch.Tensor) and leaf.shape[:2] == (1, num_tokens) for leaf in leaves]
    # Padded rows, or a text that is being generated.
    if not any(are_streams) or any(isinstance(leaf, Cache) for leaf in leaves):
        return forward(*args, **named)
    rows = documents.rows(leaves[are_streams.index(True)].device)
    results: list[list[Any]] = []
    splits = [
        rows.split(leaf) if is_stream else repeat(leaf) for leaf, is_stream in zip(leaves, are_streams, strict=True)
    ]
    for _, *inputs in zip(rows.shapes, *splits, strict=False):
        group_args, group_named = tree_unflatten(inputs, structure)
        values, out_structure = tree_flatten(forward(*group_args, **group_named))
        results.append(values)
    # Beside the tokens there are only states, which nothing reads in training.
    joined = [rows.join(list(values)) if _are_rows(values, rows) else None for values in zip(*results, strict=True)]
    return tree_unflatten(joined, out_structure)


def _are_rows(values: Sequence[Any], rows: Rows) -> bool:
    """Returns True if values, one of each group, are tensors [D, S, ...]."""
    pairs = zip(values, rows.shapes, strict=True)
    return all(isinstance(value, torch.Tensor) and value.shape[:2] == shape for value, shape in pairs)
