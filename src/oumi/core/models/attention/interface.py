# SPDX-License-Identifier: Apache-2.0
"""Causal attention within each document of a flat batch, through the attention interface of transformers.

Shape letters: T tokens, H query heads, K key heads, E head size, S tokens of one document; in place of the 1 in front
stands the number of documents where they are of one length.
"""

from __future__ import annotations

import inspect
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
"""From torch 2.12 on; before, the kernel lets several queries share a key without being asked."""
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
        raise TypeError(f"{type(module).__name__} is not told where documents begin")
    attend = _scored if _needs_scores(module, settings) else _fused
    inputs = _in_common_dtype(query_1HTE, key_1KTE, value_1KTE)
    if _is_for_flex(module, inputs, settings):
        return _by_flex(inputs, documents, settings), None
    lengths = [b - a for a, b in pairwise(documents.offsets)]
    is_even = len(set(lengths)) == 1
    if _takes_all_at_once(module, inputs[0], settings):
        if not is_even or not _is_for_cudnn(documents, settings):
            return _varlen(*inputs, documents, settings), None
        attend = _by_cudnn
    if is_even and attend is not _scored:  # as in joined texts: all documents by one call
        rows = (tensor.transpose(1, 2).unflatten(1, (-1, lengths[0]))[0].transpose(1, 2) for tensor in inputs)
        return attend(*rows, settings).transpose(1, 2).flatten(0, 1)[None], None
    if attend is _fused and _is_plain(documents, settings) and takes_cpu_kernel(*inputs):
        return DocumentAttention.apply(*inputs, documents.offsets, settings.get("scaling")), None
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


def _takes_all_at_once(module: torch.nn.Module, query_1HTE: torch.Tensor, settings: dict[str, Any]) -> bool:
    """Returns True where one kernel of the GPU takes all documents: Ampere or newer, 16 bits, plain scores."""
    return (
        query_1HTE.is_cuda
        and query_1HTE.dtype in (torch.bfloat16, torch.float16)
        and query_1HTE.shape[-1] % 8 == 0
        and query_1HTE.shape[-1] <= _LARGEST_HEAD
        and not settings.get("dropout")
        and not _needs_scores(module, settings)
        and torch.cuda.get_device_capability(query_1HTE.device) >= (8, 0)
    )


def _is_plain(documents: Documents, settings: dict[str, Any]) -> bool:
    """Returns True where each token sees all of its document up to itself, and nothing is dropped."""
    window = _window(settings)
    return not settings.get("dropout") and (window is None or window >= documents.longest)


def _is_for_cudnn(documents: Documents, settings: dict[str, Any]) -> bool:
    """Returns True where cuDNN's kernel, which wants documents of one length, is worth its preparation: on Hopper.

    On an H200 it took 0.54 to 0.65 of FlashAttention 2's time, forward and backward, at 4,096 tokens.
    """
    return documents.longest >= _FEWEST_FOR_CUDNN and _is_plain(documents, settings) and _has_fast_cudnn()


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


def _needs_scores(module: torch.nn.Module, settings: dict[str, Any]) -> bool:
    """Returns True where the score matrix itself is altered, which no kernel of SDPA does."""
    implementation = module.config._attn_implementation
    return implementation == FLAT_EAGER or settings.get("softcap") is not None or settings.get("s_aux") is not None


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


def _by_cudnn(
    query_1HSE: torch.Tensor, key_1KSE: torch.Tensor, value_1KSE: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    """Does what `_fused` does, by cuDNN if it takes heads of this size."""
    with sdpa_kernel(_BY_SPEED, set_priority=True):
        return _fused(query_1HSE, key_1KSE, value_1KSE, settings)


def _scored(
    query_1HSE: torch.Tensor, key_1KSE: torch.Tensor, value_1KSE: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    """Returns attention with soft-capped scores and attention sinks where asked, a block of queries at a time."""
    scoring = _scoring(query_1HSE, settings)
    sinks_H, dropout = settings.get("s_aux"), settings.get("dropout")
    if dropout:
        return attention_by_definition(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring, dropout)
    return scored_attention(query_1HSE, key_1KSE, value_1KSE, sinks_H, scoring)


def _is_for_flex(module: torch.nn.Module, inputs: Inputs, settings: dict[str, Any]) -> bool:
    """Returns True where one kernel takes scores that are altered; attention that is asked to be eager stays so."""
    needs_scores = module.config._attn_implementation != FLAT_EAGER and _needs_scores(module, settings)
    if not needs_scores or settings.get("dropout"):
        return False
    return takes_flex(inputs, settings.get("s_aux"), _scoring(inputs[0], settings))


def _by_flex(inputs: Inputs, documents: Documents, settings: dict[str, Any]) -> torch.Tensor:
    """Does what `_scored` does, for all documents at once, and returns it as [1, T, H, E]."""
    mask = documents.mask(_window(settings), inputs[0].device)
    out = flex_scored_attention(inputs, settings.get("s_aux"), mask, _scoring(inputs[0], settings))
    return out.transpose(1, 2).contiguous()


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
