# SPDX-License-Identifier: Apache-2.0
"""Causal attention within each document of a flat batch, through the attention interface of transformers.

Shape letters: T tokens, H query heads, K key heads, E head size, S tokens of one document. If all documents have the
same length, the leading 1 becomes the number of documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from oumi.core.models.attention.cpu import DocumentAttention, Part, takes_cpu_kernel
from oumi.core.models.attention.flex import Inputs, documents_mask, flex_scored_attention, takes_flex
from oumi.core.models.attention.rows import Rows
from oumi.core.models.attention.scored import Block, Scoring, attention_by_definition, blocks, scored_attention, visible

_LARGEST_HEAD = 256
_FEWEST_FOR_CUDNN = 512
"""Minimum tokens of a document for cuDNN, which builds a kernel for each new shape."""
_QUERIES = 256
"""Queries per block of a document that is longer than a layer's window."""
_BY_SPEED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_HAS_GQA_OPTION = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""From torch 2.12 on; before, grouped query heads need no option."""
FLAT_SDPA = "oumi_flat_fused"
FLAT_EAGER = "oumi_flat_eager"


class Documents:
    """The offsets of the documents in the current batch; one object, updated in place for each batch.

    Layers pass it through as an opaque object. With the offsets as an argument, torch.compile would recompile the
    layers for every batch.
    """

    offsets: tuple[int, ...] = ()
    """Start of each document, and end of the last one [D + 1]."""
    parts: tuple[Part, ...] = ()
    """Tokens of each document, and those before it that it continues [D]."""
    longest: int = 0
    """Tokens of the longest document."""
    _on_device: torch.Tensor | None = None
    _rows: Rows | None = None

    def __init__(self) -> None:
        self._masks: dict[int | None, BlockMask] = {}

    @property
    def has_prefixes(self) -> bool:
        """Returns True if a document continues another."""
        return any(prefix is not None for _, prefix in self.parts)

    def fill(self, offsets: tuple[int, ...], prefixes: Sequence[slice | None] = ()) -> None:
        """Sets the documents of the next batch, and drops what was computed for the last one.

        Args:
            offsets: Start of each document, and end of the last one [D + 1].
            prefixes: Tokens of another document that each one continues [D]; empty if none does.
        """
        self.offsets = offsets
        owns = [slice(*ends) for ends in pairwise(offsets)]
        self.parts = tuple(zip(owns, prefixes or [None] * len(owns), strict=True))
        self.longest = max((b - a for a, b in pairwise(offsets)), default=0)
        self._on_device = None
        self._rows = None
        self._masks = {}

    def on_device(self, device: torch.device) -> torch.Tensor:
        """Returns the offsets as int32 on a device, copied once for all layers."""
        if self._on_device is None:
            # Pinned, since a copy from pageable memory blocks the host.
            self._on_device = torch.tensor(self.offsets, dtype=torch.int32).pin_memory().to(device, non_blocking=True)
        return self._on_device

    def rows(self, device: torch.device) -> Rows:
        """Returns how layers without attention take the documents as rows, computed once for all of them."""
        if self._rows is None:
            self._rows = Rows(self.parts, device)
        return self._rows

    def mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Returns the mask of a window in tokens (None: unlimited), computed once for all layers."""
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
    """Returns attention [1, T, H, E] in which each token sees itself and those before it in its document.

    `settings` are the arguments of the model's layer: `scaling`, `dropout`, `sliding_window`, `softcap`, attention
    sinks `s_aux`, and our `documents`. Not compiled, since it branches on the number and lengths of the documents.

    Raises:
        TypeError: The model's layers do not pass `documents` through.
        ValueError: The layer's keys are not those of the batch's tokens, or it has a mask of its own, or it computes
            scores and a document continues another.
    """
    documents = settings.get("documents")
    if documents is None:
        raise TypeError(f"{type(module).__name__} was not passed `documents`")
    device, dropout, sinks_H = query_1HTE.device, settings.get("dropout"), settings.get("s_aux")
    inputs: Inputs = (query_1HTE, key_1KTE, value_1KTE)
    _check_keys(module, inputs, attention_mask, documents)
    if torch.is_autocast_enabled(device.type):  # a rotation in float32 leaves queries and keys wider than values
        dtype = torch.get_autocast_dtype(device.type)
        inputs = (query_1HTE.to(dtype), key_1KTE.to(dtype), value_1KTE.to(dtype))
    is_eager = module.config._attn_implementation == FLAT_EAGER
    # SDPA computes neither softcaps nor sinks.
    needs_scores = is_eager or settings.get("softcap") is not None or sinks_H is not None
    if documents.has_prefixes and (needs_scores or device.type != "cpu"):
        # FlashAttention for documents of different lengths would take the keys of prefixes as copies: not tried yet.
        raise ValueError(f"{type(module).__name__} does not take documents that continue others")
    if needs_scores and not is_eager and not dropout:
        scoring = _scoring(inputs[0], settings)
        if takes_flex(inputs, sinks_H, scoring):
            out = flex_scored_attention(inputs, sinks_H, documents.mask(scoring.window, device), scoring)
            return out.transpose(1, 2).contiguous(), None
    lengths, window = [b - a for a, b in pairwise(documents.offsets)], _window(settings)
    is_even = len(set(lengths)) == 1 and not documents.has_prefixes
    sees_all = not dropout and (window is None or window >= documents.longest)
    by_cudnn = False
    if not needs_scores and not dropout and _has_varlen_kernel(inputs[0]):
        # On an H200, cuDNN took 0.54 to 0.65 of FlashAttention 2's time, forward and backward, at 4,096 tokens.
        has_fast_cudnn = torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)
        by_cudnn = is_even and sees_all and documents.longest >= _FEWEST_FOR_CUDNN and has_fast_cudnn
        if not by_cudnn:
            return _varlen(*inputs, documents, settings), None
    if is_even and not needs_scores:  # documents as rows of one call, as with concatenated texts
        rows = (
            tensor.transpose(1, 2).unflatten(1, (-1, lengths[0])).flatten(0, 1).transpose(1, 2) for tensor in inputs
        )
        # The other kernels stay enabled, since cuDNN does not support every head size.
        with sdpa_kernel(_BY_SPEED, set_priority=True) if by_cudnn else nullcontext():
            return _fused(*rows, settings).transpose(1, 2).flatten(0, 1)[None], None
    if sees_all and not needs_scores and takes_cpu_kernel(*inputs):
        return DocumentAttention.apply(*inputs, documents.parts, settings.get("scaling")), None
    attend = _scored if needs_scores else _fused
    return _one_by_one(attend, inputs, documents, settings), None


def _check_keys(
    module: torch.nn.Module, inputs: Inputs, attention_mask: torch.Tensor | None, documents: Documents
) -> None:
    """Raises ValueError if a layer attends to other keys than those of all tokens before it, such as chosen ones."""
    if attention_mask is not None:  # transformers makes none for this attention
        raise ValueError(f"{type(module).__name__} chooses keys by a mask of its own")
    num_tokens, num_keys = documents.offsets[-1], inputs[1].shape[2]
    if any(tensor.shape[2] != num_tokens for tensor in inputs):
        raise ValueError(f"{type(module).__name__} attends to {num_keys} keys of {num_tokens} tokens")


def _has_varlen_kernel(query_1HTE: torch.Tensor) -> bool:
    """Returns True if FlashAttention supports the inputs: 16 bits, and a GPU of NVIDIA's Ampere or newer."""
    return (
        query_1HTE.is_cuda
        and query_1HTE.dtype in (torch.bfloat16, torch.float16)
        and query_1HTE.shape[-1] % 8 == 0
        and query_1HTE.shape[-1] <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(query_1HTE.device) >= (8, 0)
    )


def _varlen(
    query_1HTE: torch.Tensor,
    key_1KTE: torch.Tensor,
    value_1KTE: torch.Tensor,
    documents: Documents,
    settings: dict[str, Any],
) -> torch.Tensor:
    """Returns attention [1, T, H, E] of all documents by one call of FlashAttention (arXiv 2307.08691)."""
    parts = [tensor[0].transpose(0, 1) for tensor in (query_1HTE, key_1KTE, value_1KTE)]
    options: dict[str, Any] = {"enable_gqa": query_1HTE.shape[1] != key_1KTE.shape[1]} if _HAS_GQA_OPTION else {}
    offsets = documents.on_device(query_1HTE.device)
    window = _window(settings)
    return varlen_attn(
        *parts,
        offsets,
        offsets,
        documents.longest,
        documents.longest,
        scale=settings.get("scaling"),
        # The window of transformers includes the token itself, that of FlashAttention does not; -1 means no limit.
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )[None]


def _fused(
    query_1HSE: torch.Tensor, key_1KSE: torch.Tensor, value_1KSE: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    """Returns attention [D, H, S, E] by SDPA, in blocks of queries for a document that is longer than the window."""
    window, length = _window(settings), query_1HSE.shape[2]
    if window is None or window >= length:
        return _sdpa(query_1HSE, key_1KSE, value_1KSE, None, settings)
    # With one mask for the whole document, SDPA would also compute the many scores outside the window.
    parts = []
    for block in blocks(length, window, _QUERIES):
        mask = visible(block, window, query_1HSE.device)
        inputs = (query_1HSE[:, :, block.queries], key_1KSE[:, :, block.keys], value_1KSE[:, :, block.keys])
        parts.append(_sdpa(*inputs, mask, settings))
    return torch.cat(parts, dim=2)


def _one_by_one(
    attend: Callable[..., torch.Tensor], inputs: Inputs, documents: Documents, settings: dict[str, Any]
) -> torch.Tensor:
    """Returns attention [1, T, H, E] with a call of `attend` for each document: the fallback for everything else."""
    outs = [
        attend(*(tensor[:, :, own] for tensor in inputs), settings)
        if prefix is None
        else _continuing(inputs, own, prefix, settings)
        for own, prefix in documents.parts
    ]
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous()


def _continuing(inputs: Inputs, own: slice, prefix: slice, settings: dict[str, Any]) -> torch.Tensor:
    """Returns attention [1, H, S, E] of a document that sees a prefix of another and then itself."""
    query_1HTE, *both = inputs
    key, value = (torch.cat([x[:, :, prefix], x[:, :, own]], dim=2) for x in both)
    num_before = prefix.stop - prefix.start
    block = Block(slice(num_before, key.shape[2]), slice(0, key.shape[2]))
    mask = visible(block, _window(settings), query_1HTE.device)
    return _sdpa(query_1HTE[:, :, own], key, value, mask, settings)


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
    """Returns attention [D, H, S, E] with soft-capped scores and attention sinks, a block of queries at a time."""
    scoring = _scoring(query_1HSE, settings)
    sinks_H, dropout = settings.get("s_aux"), settings.get("dropout")
    if dropout:  # recomputing a block in the backward pass would need the same random numbers again
        return attention_by_definition(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring, dropout)
    return scored_attention(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring)


def _scoring(query_DHSE: torch.Tensor, settings: dict[str, Any]) -> Scoring:
    scale = settings.get("scaling") or query_DHSE.shape[-1] ** -0.5
    return Scoring(scale, settings.get("softcap"), _window(settings))


def _window(settings: dict[str, Any]) -> int | None:
    """Returns the number of tokens that a token sees, including itself; None for no limit."""
    # Layers without a window pass None, or 0.
    return settings.get("sliding_window") or None


for _name in (FLAT_SDPA, FLAT_EAGER):
    # Deliberately without an entry in AttentionMaskInterface. transformers then builds no mask, and does not look for
    # packed documents in the positions, which would synchronize with the device.
    AttentionInterface.register(_name, flat_attention)
