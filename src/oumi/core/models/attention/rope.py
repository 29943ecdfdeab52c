# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings whose frequencies follow the length of a sequence: dynamic NTK and LongRoPE (arXiv 2402.13753).

transformers takes that length from the largest position of a whole batch, and dynamic NTK keeps the frequencies for
later batches. Here each document gets the frequencies of its own length, whatever is beside or before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from oumi.core.log import logger
from oumi.core.models.attention.interface import Documents

_ORIGINAL = "original_inv_freq"
_INPUTS = {"input_ids", "attention_mask", "position_ids"}


def follows_length(module: torch.nn.Module) -> bool:
    """Returns True for a rotary embedding whose frequencies depend on the length of a sequence."""
    kinds = getattr(module, "rope_type", None)  # by layer type, where these have embeddings of their own
    names = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names)


def original_length(module: torch.nn.Module) -> int:
    """Returns up to how many tokens the frequencies of a module that `follows_length` are always the same."""
    settings: Any = module.config.rope_parameters  # by layer type, where these have settings of their own
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    lengths = [part["original_max_position_embeddings"] for part in parts if "original_max_position_embeddings" in part]
    return int(min([*lengths, module.config.max_position_embeddings]))


def forget_lengths(model: torch.nn.Module) -> None:
    """Makes the frequencies of a model those of short sequences again, which dynamic NTK keeps from longer ones."""
    # A buffer that is made in inference mode could not be written to in training.
    with torch.inference_mode(False):
        for module in filter(follows_length, model.modules()):
            _forget(module)


def separate_documents(model: torch.nn.Module, documents: Documents) -> None:
    """Makes the rotary embeddings of a model see one document of a batch at a time.

    Args:
        model: A transformers model; only modules that `follows_length` names are changed.
        documents: The offsets of the documents in a flat batch.
    """
    for module in model.modules():
        if follows_length(module):
            forward = type(module).forward
            module.forward = _by_document(module, forward, documents)  # type: ignore[method-assign, assignment]


def separate_rows(model: torch.nn.Module) -> None:
    """Makes the rotary embeddings of a model see one row of a padded batch at a time, padded on either side.

    Args:
        model: A transformers model, with or without an adapter, that is passed a mask and no positions.
    """
    separate_documents(model, Documents())
    for part in model.modules():
        takes_positions = inspect.signature(type(part).forward).parameters.keys() >= _INPUTS
        if takes_positions and any(map(follows_length, part.modules())):
            part.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(
    part: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Adds the positions [B, S] of rows; a model that counts them itself takes all rows to be as long as the batch."""
    inputs = inspect.signature(type(part).forward).bind(part, *args, **named).arguments
    mask_BS = inputs.get("attention_mask")
    if mask_BS is not None and inputs.get("position_ids") is None:
        named = {**named, "position_ids": (mask_BS.cumsum(-1) - 1).clamp_min(0)}
    return args, named


def _by_document(module: Any, forward: Callable[..., Any], documents: Documents) -> Callable[..., Any]:
    has_warned = False

    def embed(x: torch.Tensor, position_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        nonlocal has_warned
        if len(x) > position_ids.shape[-2] and not has_warned:
            logger.warning("numbers depend on the longest row of a batch: %s has one length", type(module).__name__)
            has_warned = True
        parts, dim = _documents(position_ids, documents)
        results = []
        for positions in parts:
            _forget(module)
            results.append(forward(module, x, positions, *rest, **named))
        if isinstance(results[0], torch.Tensor):  # complex numbers
            return torch.cat(results, dim)
        return tuple(torch.cat(tables, dim) for tables in zip(*results, strict=True))

    return embed


def _documents(position_ids: torch.Tensor, documents: Documents) -> tuple[tuple[torch.Tensor, ...], int]:
    """Returns the positions of each document, and the dimension of the embedding along which documents follow."""
    num_rows, num_tokens = position_ids.shape[-2:]
    if num_rows == 1 and documents.offsets and documents.offsets[-1] == num_tokens:  # a flat batch
        lengths = [end - start for start, end in zip(documents.offsets, documents.offsets[1:], strict=False)]
        return position_ids.split(lengths, dim=-1), -2
    return position_ids.split(1, dim=-2), -3


def _forget(module: Any) -> None:
    """Restores the frequencies of short sequences, which dynamic NTK replaces for later batches, too."""
    for name, original in _originals(module):
        prefix = name.removesuffix(_ORIGINAL)
        # A copy, since LongRoPE writes into it.
        module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _originals(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    buffers = {**vars(module), **dict(module.named_buffers(recurse=False))}
    yield from ((name, value) for name, value in buffers.items() if name.endswith(_ORIGINAL))
