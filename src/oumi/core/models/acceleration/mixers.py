# SPDX-License-Identifier: Apache-2.0
"""Finds the layers of a model through which a document of a flat batch changes another, by what they compute.

These are the mixers of hybrid models: linear attention, state-space layers, convolutions. Their classes share neither
names nor arguments nor a base, so none is listed here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.by_document import run_by_document, run_whole
from oumi.core.models.attention.interface import Documents
from oumi.core.models.equivalence import is_close
from oumi.core.models.twin import kind_of

Kind = tuple[str, type]
"""Path of a module without the numbers of layers, and its class."""
_MAX_ROUNDS = 4
"""Of a module that mixes beside one in it that does, too."""


def find_mixers(model: Any, documents: Documents, compute: Callable[[], Any]) -> frozenset[Kind]:
    """Returns the kinds of the smallest modules that, each by itself, change documents behind the first with it.

    Args:
        model: A small model, whose modules are called once more each.
        documents: The documents of the batch that is computed.
        compute: Computes the batch, with our attention in all layers that have one.
    """
    kinds: frozenset[Kind] = frozenset()
    for _ in range(_MAX_ROUNDS):
        modules = modules_of(model, kinds)
        run_by_document(modules, documents)
        try:
            mixing = _mixing_kinds(model, documents, compute)
        finally:
            run_whole(modules)
        if not mixing:
            break
        places = tuple(f"{place}." for place, _ in mixing)
        kinds = mixing | {kind for kind in kinds if not kind[0].startswith(places)}
    return kinds


def modules_of(model: Any, kinds: frozenset[Kind]) -> list[torch.nn.Module]:
    """Returns the modules of these kinds."""
    named = below_adapter(model).named_modules() if kinds else ()
    return [module for name, module in named if kind_of(name, module)[:2] in kinds]


def _mixing_kinds(model: Any, documents: Documents, compute: Callable[[], Any]) -> frozenset[Kind]:
    """Returns the kinds of the innermost modules through which the first document changes the others."""
    calls: dict[str, tuple[Any, ...]] = {}

    def keep(name: str, _: Any, args: Any, named: Any, result: Any) -> None:
        calls[name] = args, named, result

    modules = dict(below_adapter(model).named_modules())
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(keep, name), with_kwargs=True).remove)
        compute()
    mixing = [name for name, call in calls.items() if name and _mixes(modules[name], documents, *call)]
    innermost = [name for name in mixing if not any(other.startswith(f"{name}.") for other in mixing)]
    return frozenset(kind_of(name, modules[name])[:2] for name in innermost)


def _mixes(module: torch.nn.Module, documents: Documents, args: Any, named: Any, result: Any) -> bool:
    """Returns True if other inputs for the first document change a module's result for the others."""
    first, num_tokens = documents.offsets[1], documents.offsets[-1]

    def is_stream(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape[:2] == (1, num_tokens)

    def changed(value: Any) -> Any:
        if not is_stream(value):
            return value
        return torch.cat([1.5 * value[:, :first].flip(1) + 0.1, value[:, first:]], dim=1)

    if not any(map(is_stream, tree_flatten((args, named))[0])):
        return False
    other = module(*tree_map(changed, args), **tree_map(changed, named))
    pairs = zip(tree_flatten(result)[0], tree_flatten(other)[0], strict=True)
    return any(is_stream(a) and not is_close(b[:, first:], a[:, first:]) for a, b in pairs)
