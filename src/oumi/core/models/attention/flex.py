# SPDX-License-Identifier: Apache-2.0
"""Attention with soft-capped scores and attention sinks on a GPU, by torch's FlexAttention for all documents at once.

The mask is a list of blocks of 128 x 128 scores: those that are visible in part, and those that need no mask. Blocks
follow from the offsets alone, so they are computed on the host, once for all layers, without waiting for the device.

Shape letters: T tokens, H query heads, K key heads, E head size, N blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from oumi.core.log import logger
from oumi.core.models.attention.scored import Scoring, scored_attention

BLOCK = 128
"""Tokens; FlexAttention's own choice."""
_HEADS = (16, 32, 64, 128, 256)
_MAX_ERROR = 0.03
"""Relative error of 16-bit results."""
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries [1, H, T, E], keys and values [1, K, T, E]."""


def may_take_flex(model: Any) -> bool:
    """Returns True if a model may use FlexAttention, whose compiled kernel cannot be timed by operation."""
    is_capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return any(
        (is_capped or name.endswith("sinks")) and parameter.is_cuda for name, parameter in model.named_parameters()
    )


def takes_flex(inputs: Inputs, sinks_H: torch.Tensor | None, scoring: Scoring) -> bool:
    """Returns True if the kernel supports the inputs and is worth its compilation, which takes 13 s per configuration.

    On an H200, 64 heads of 64 with sinks took 5 ms for 8,808 tokens, forward and backward, and 1.7 ms for 7,281 tokens
    with windows of 128. With `scored_attention` they took 51 and 91 ms.
    """
    query_1HTE, key_1KTE, value_1KTE = inputs
    return (
        query_1HTE.is_cuda
        and query_1HTE.dtype in (torch.bfloat16, torch.float16)
        and query_1HTE.shape[2] > BLOCK
        and query_1HTE.shape[3] in _HEADS
        and key_1KTE.shape == value_1KTE.shape
        and torch.cuda.get_device_capability(query_1HTE.device) >= (8, 0)
        and _works(query_1HTE.shape[3], query_1HTE.dtype, sinks_H is not None, scoring.softcap, query_1HTE.device)
    )


@lru_cache
def _works(size: int, dtype: torch.dtype, has_sinks: bool, softcap: float | None, device: torch.device) -> bool:
    """Returns True if the kernel compiles, and its output and gradients equal those of each document alone.

    Verified once per configuration: some GPUs have too little shared memory for wide heads, and some machines have no
    compiler.
    """
    lengths, scoring = (100, 60), Scoring(size**-0.5, softcap)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
        # Replaces the hooks of gradient checkpointing, which would count the tensors saved here as the layer's.
        torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
    ):
        torch.manual_seed(0)
        # Grouped heads, and two documents whose border lies within a block, so that one spans two blocks.
        inputs = [torch.randn(1, heads, sum(lengths), size, device=device, dtype=dtype) for heads in (4, 2, 2)]
        inputs += [torch.randn(4, device=device, dtype=dtype)] if has_sinks else []
        leaves = [tensor.requires_grad_() for tensor in inputs]
        query, key, value, sinks = (*leaves, None)[:4]
        # The reference: each document on its own.
        split = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        expected = torch.cat([scored_attention(*document, sinks, scoring) for document in split], dim=2)
        upstream = torch.randn_like(expected)
        references = (expected, *torch.autograd.grad(expected, leaves, upstream))
        mask = documents_mask((0, lengths[0], sum(lengths)), None, device)
        try:
            out = flex_scored_attention((query, key, value), sinks, mask, scoring)
            outputs = (out, *torch.autograd.grad(out, leaves, upstream))
            errors = [
                float((a - b).float().norm() / b.float().norm()) for a, b in zip(outputs, references, strict=True)
            ]
            reason = "" if all(error < _MAX_ERROR for error in errors) else "its results differ"
        except (RuntimeError, ImportError, FailOnRecompileLimitHit) as error:  # errors of Inductor are RuntimeErrors
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if reason:
        logger.warning(
            "attention is computed a block of queries at a time, which takes longer: FlexAttention: %s", reason
        )
    return not reason


def flex_scored_attention(
    inputs: Inputs, sinks_H: torch.Tensor | None, mask: BlockMask, scoring: Scoring
) -> torch.Tensor:
    """Returns attention [1, H, T, E] of all documents of a mask, by a compiled kernel.

    Uncompiled, FlexAttention would allocate all scores.
    """
    cap = None if scoring.softcap is None else _cap(scoring.softcap, inputs[0].device)
    return _compiled()(inputs, sinks_H, mask, cap, scoring.scale)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    # Not at import: torch.compile loads the compiler. fullgraph, so that nothing runs uncompiled unnoticed.
    return torch.compile(attention_of_documents, dynamic=True, fullgraph=True)


def attention_of_documents(
    inputs: Inputs, sinks_H: torch.Tensor | None, mask: BlockMask, cap: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Returns attention [1, H, T, E] with scores capped by `cap`, a scalar tensor, and with sinks unless None.

    A sink takes weight and has no value, so it scales the output of a query by 1 - its share. This factor is the
    sigmoid of the query's log-sum-exp less the sink.
    """
    query_1HTE, key_1KTE, value_1KTE = inputs
    out, sums = flex_attention(
        query_1HTE,
        key_1KTE,
        value_1KTE,
        score_mod=None if cap is None else lambda score, _b, _h, _q, _k: cap * torch.tanh(score / cap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query_1HTE.shape[1] != key_1KTE.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if sinks_H is None:
        return out  # type: ignore[no-any-return]
    return (out * torch.sigmoid(sums.lse - sinks_H[:, None])[..., None]).to(out.dtype)  # type: ignore[no-any-return]


@lru_cache
def _cap(softcap: float, device: torch.device) -> torch.Tensor:
    """Returns the softcap as a tensor: with a dynamic float, torch 2.11 fails in the backward pass."""
    return torch.full((), softcap, device=device)


def documents_mask(offsets: tuple[int, ...], window: int | None, device: torch.device) -> BlockMask:
    """Returns the mask in which a token sees itself and those before it in its document and window.

    Args:
        offsets: Start of each document, and end of the last one [D + 1].
        window: Number of tokens that a token sees, including itself; None for no limit.
        device: Device of the mask.
    """
    # The visible keys of a token are contiguous and end with itself, so the first one defines them.
    first_key = np.repeat(np.array(offsets[:-1], dtype=np.int32), np.diff(offsets))
    if window:
        first_key = np.maximum(first_key, np.arange(offsets[-1], dtype=np.int32) - window + 1)
    first_key_T = _sent(first_key, device)
    listed = [
        _sent(blocks_of_kind, device)
        for blocks in _visible_blocks(first_key)
        for blocks_of_kind in _listed(blocks, blocks.T)
    ]
    # By rows of queries for the forward pass, by columns of keys for the backward pass.
    (part_counts, part_orders), (full_counts, full_orders) = listed[:2], listed[2:]

    def is_visible(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        # The window is not compared as a number: the compiler would make it a constant, so one kernel per window.
        return (key <= query) & (key >= first_key_T[query])

    return BlockMask(
        seq_lengths=(offsets[-1], offsets[-1]),
        kv_num_blocks=part_counts[0],
        kv_indices=part_orders[0],
        full_kv_num_blocks=full_counts[0],
        full_kv_indices=full_orders[0],
        q_num_blocks=part_counts[1],
        q_indices=part_orders[1],
        full_q_num_blocks=full_counts[1],
        full_q_indices=full_orders[1],
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=is_visible,
    )


def _visible_blocks(first_key_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two matrices [N, N]: blocks of keys [column] that a block of queries [row] sees in part, and completely.

    `first_key_T` is the first visible key of each token, and never decreases.
    """
    first = np.arange(0, len(first_key_T), BLOCK)
    last = np.minimum(first + BLOCK, len(first_key_T)) - 1
    is_visible = (first <= first[:, None]) & (last >= first_key_T[first][:, None])
    # Its last query has the latest first key. The diagonal is never complete, being causal.
    is_full = (first < first[:, None]) & (first >= first_key_T[last][:, None])
    return is_visible & ~is_full, is_full


def _listed(*blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of visible blocks per row, and all columns with the visible ones first [2, 1, 1, N(, N)]."""
    is_visible = np.stack(blocks)[:, None, None]
    return is_visible.sum(-1, dtype=np.int32), np.argsort(~is_visible, axis=-1, kind="stable").astype(np.int32)


def _sent(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """Returns the array on a device, by a copy that the host does not wait for."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
