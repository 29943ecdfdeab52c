# SPDX-License-Identifier: Apache-2.0
"""Causal attention within each document of a flat batch, through the attention interface of transformers.

Shape letters: T tokens, H query heads, K key heads, E head size, S tokens of one document; in place of the 1 in front
stands the number of documents where they are of one length.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from oumi.core.models.attention.cpu import DocumentAttention, takes_cpu_kernel
from oumi.core.models.attention.flex import Inputs, documents_mask, flex_scored_attention, takes_flex
from oumi.core.models.attention.scored import Scoring, attention_by_definition, blocks, scored_attention, visible

_LARGEST_HEAD = 256
_FEWEST_FOR_CUDNN = 512
"""Tokens of a document; cuDNN prepares a kernel for each size that it meets."""
_QUERIES = 256
"""Of a document that is longer than a layer's window, so many at a time."""
_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_ASKS_FOR_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""From torch 2.12 on; before, the kernel always lets several queries share a key."""
FLAT_SDPA = "oumi_flat_fused"
FLAT_EAGER = "oumi_flat_eager"


class Documents:
    """Where the documents of the batch at hand begin; one object, filled anew for each batch.

    Layers hand it on as it is: were the offsets handed on themselves, compiled layers would be compiled anew for
    every batch.
    """

    offsets: tuple[int, ...] = ()
    """Where each document begins, and where the last one ends [D + 1]."""
    longest: int = 0
    """Tokens of the longest document."""
    _on_device: torch.Tensor | None = None

    def __init__(self) -> None:
        self._masks: dict[int | None, BlockMask] = {}

    def fill(self, offsets: tuple[int, ...]) -> None:
        """Takes the documents of the next batch."""
        self.offsets = offsets
        self.longest = max((b - a for a, b in pairwise(offsets)), default=0)
        self._on_device = None
        self._masks = {}

    def on_device(self, device: torch.device) -> torch.Tensor:
        """Returns the offsets as int32 on a device: sent once for all layers, and not waited for."""
        if self._on_device is None:
            # Pinned, since a copy from other memory would make the host wait.
            self._on_device = torch.tensor(self.offsets, dtype=torch.int32).pin_memory().to(device, non_blocking=True)
        return self._on_device

    def mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Returns who sees whom within a window of so many tokens, None for all before: made once for all layers."""
        if window not in self._masks:
            self._masks[window] = documents_mask(self.offsets, window, device)
        return self._masks[window]


@torch.compiler.disable
def flat_attention(
    module: torch.nn.Module,
    query_1HTE: torch.Tensor,
    key_1KTE: torch.Tensor,
    value_1KTE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Returns attention [1, T, H, E] in which each token sees its own document up to itself.

    `settings` are what the model's layer passes: `scaling`, `dropout`, `sliding_window`, `softcap`,
    attention sinks `s_aux`, and our `documents`. It is not compiled: how many documents there are changes.

    Raises:
        TypeError: The model's layers do not pass on the offsets.
    """
    documents = settings.get("documents")
    if documents is None:
        raise TypeError(f"{type(module).__name__} was not passed `documents`")
    inputs = _in_common_dtype(query_1HTE, key_1KTE, value_1KTE)
    device, dropout, sinks_H = inputs[0].device, settings.get("dropout"), settings.get("s_aux")
    is_eager = module.config._attn_implementation == FLAT_EAGER
    # No kernel of SDPA alters the score matrix itself.
    needs_scores = is_eager or settings.get("softcap") is not None or sinks_H is not None
    if needs_scores and not is_eager and not dropout:
        scoring = _scoring(inputs[0], settings)
        if takes_flex(inputs, sinks_H, scoring):
            out = flex_scored_attention(inputs, sinks_H, documents.mask(scoring.window, device), scoring)
            return out.transpose(1, 2).contiguous(), None
    lengths, window = [b - a for a, b in pairwise(documents.offsets)], _window(settings)
    is_even = len(set(lengths)) == 1
    sees_all = not dropout and (window is None or window >= documents.longest)
    by_cudnn = False
    if not needs_scores and not dropout and _has_varlen_kernel(inputs[0]):
        # On an H200, cuDNN took 0.54 to 0.65 of FlashAttention 2's time, forward and backward, at 4,096 tokens.
        by_cudnn = is_even and sees_all and documents.longest >= _FEWEST_FOR_CUDNN and _has_fast_cudnn()
        if not by_cudnn:
            return _varlen(*inputs, documents, settings), None
    if is_even and not needs_scores:  # as in joined texts: all documents by one call
        rows = (tensor.transpose(1, 2).unflatten(1, (-1, lengths[0]))[0].transpose(1, 2) for tensor in inputs)
        # The other kernels stay allowed: cuDNN does not take heads of every size.
        with sdpa_kernel(_BY_SPEED, set_priority=True) if by_cudnn else nullcontext():
            return _fused(*rows, settings).transpose(1, 2).flatten(0, 1)[None], None
    if sees_all and not needs_scores and takes_cpu_kernel(*inputs):
        return DocumentAttention.apply(*inputs, documents.offsets, settings.get("scaling")), None
    # What is left goes a document at a time, by whatever kernel the device has.
    attend = _scored if needs_scores else _fused
    split = (tensor.split(lengths, dim=2) for tensor in inputs)
    parts = [attend(*document, settings) for document in zip(*split, strict=True)]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _in_common_dtype(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Inputs:
    """Returns the inputs in the dtype of mixed precision, if it is on: a rotation leaves queries and keys wider."""
    device = query.device.type
    if not torch.is_autocast_enabled(device):
        return query, key, value
    dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _has_varlen_kernel(query_1HTE: torch.Tensor) -> bool:
    """Returns True where one kernel of the GPU takes documents of any length: Ampere or newer, and 16 bits."""
    return (
        query_1HTE.is_cuda
        and query_1HTE.dtype in (torch.bfloat16, torch.float16)
        and query_1HTE.shape[-1] % 8 == 0
        and query_1HTE.shape[-1] <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(query_1HTE.device) >= (8, 0)
    )


@lru_cache(maxsize=1)
def _has_fast_cudnn() -> bool:
    return torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def _varlen(
    query_1HTE: torch.Tensor,
    key_1KTE: torch.Tensor,
    value_1KTE: torch.Tensor,
    documents: Documents,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Returns attention [1, T, H, E] of all documents by one call of FlashAttention (arXiv 2307.08691)."""
    parts = [tensor[0].transpose(0, 1) for tensor in (query_1HTE, key_1KTE, value_1KTE)]
    options: dict[str, Any] = {"enable_gqa": query_1HTE.shape[1] != key_1KTE.shape[1]} if _ASKS_FOR_GQA else {}
    offsets = documents.on_device(query_1HTE.device)
    window = _window(settings)
    return varlen_attn(
        *parts,
        offsets,
        offsets,
        documents.longest,
        documents.longest,
        scale=settings.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),  # the window of transformers counts the token itself
        **options,
    )[None]


def _fused(
    query_1HSE: torch.Tensor, key_1KSE: torch.Tensor, value_1KSE: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    window, length = _window(settings), query_1HSE.shape[2]
    if window is None or window >= length:
        return _sdpa(query_1HSE, key_1KSE, value_1KSE, None, settings)
    parts = []
    for block in blocks(length, window, _QUERIES):  # of a long document, most keys are before the window
        mask = visible(block, window, query_1HSE.device)
        inputs = (query_1HSE[:, :, block.queries], key_1KSE[:, :, block.keys], value_1KSE[:, :, block.keys])
        parts.append(_sdpa(*inputs, mask, settings))
    return torch.cat(parts, dim=2)


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, settings: dict[str, Any]
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=settings.get("dropout", 0.0),
        scale=settings.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _scored(
    query_1HSE: torch.Tensor, key_1KSE: torch.Tensor, value_1KSE: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    """Returns attention with a layer's soft-capped scores and attention sinks, a block of queries at a time."""
    scoring = _scoring(query_1HSE, settings)
    sinks_H, dropout = settings.get("s_aux"), settings.get("dropout")
    if dropout:  # the backward pass of blocks would have to draw the same numbers again
        return attention_by_definition(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring, dropout)
    return scored_attention(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring)


def _scoring(query_DHSE: torch.Tensor, settings: dict[str, Any]) -> Scoring:
    scale = settings.get("scaling") or query_DHSE.shape[-1] ** -0.5
    return Scoring(scale, settings.get("softcap"), _window(settings))


def _window(settings: dict[str, Any]) -> int | None:
    """Returns how many tokens a token sees, itself among them, None where all before it are seen."""
    return settings.get("sliding_window") or None


for _name in (FLAT_SDPA, FLAT_EAGER):
    # No maker of masks goes with it: documents are kept apart by their offsets. transformers then makes none, and
    # does not ask the device whether positions begin anew.
    AttentionInterface.register(_name, flat_attention)
