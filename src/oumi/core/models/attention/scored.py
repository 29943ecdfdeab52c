# SPDX-License-Identifier: Apache-2.0
"""Causal attention with soft-capped scores or attention sinks, which SDPA does not support.

Shape letters: D documents of one length, H query heads, K key heads, S tokens of a document, E head size, B queries of
a block, N keys that are visible to any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from oumi.core.plan.step_sizes import block_queries


@dataclass(frozen=True)
class Scoring:
    """How a layer computes its attention weights."""

    scale: float
    softcap: float | None = None
    window: int | None = None
    """Number of tokens that a token sees, including itself; None for no limit."""


@dataclass(frozen=True)
class Block:
    """Queries that are computed together, and the keys that any of them sees."""

    queries: slice
    keys: slice


def blocks(length: int, window: int | None, num_queries: int) -> Iterator[Block]:
    """Yields the queries of a document in order, each block with its keys."""
    for start in range(0, length, num_queries):
        stop = min(start + num_queries, length)
        yield Block(slice(start, stop), slice(0 if window is None else max(start - window + 1, 0), stop))


def visible(block: Block, window: int | None, device: torch.device) -> torch.Tensor:
    """Returns the boolean mask [B, N] of a block: a query sees itself and the keys before it within the window."""
    queries = torch.arange(block.queries.start, block.queries.stop, device=device)
    keys = torch.arange(block.keys.start, block.keys.stop, device=device)
    distance = queries[:, None] - keys[None, :]
    return (distance >= 0) & (distance < (block.keys.stop if window is None else window))


def scored_attention(
    query_DHSE: torch.Tensor,
    key_DKSE: torch.Tensor,
    value_DKSE: torch.Tensor,
    sinks_H: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Returns attention [D, H, S, E], with the scores of only one block of queries in memory at a time.

    The backward pass recomputes each block from the log-sum-exp of its queries, as FlashAttention does
    (arXiv 2205.14135).
    """
    return _ScoredAttention.apply(query_DHSE, key_DKSE, value_DKSE, sinks_H, scoring)  # type: ignore[no-any-return]


def attention_by_definition(
    query_DHSE: torch.Tensor,
    key_DKSE: torch.Tensor,
    value_DKSE: torch.Tensor,
    sinks_H: torch.Tensor | None,
    scoring: Scoring,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Returns the same as `scored_attention` from the full score matrix, with dropout of the weights.

    It is the implementation for attention dropout, and the reference of the tests.
    """
    groups, length = query_DHSE.shape[1] // key_DKSE.shape[1], query_DHSE.shape[2]
    key_DHSE, value_DHSE = (part.repeat_interleave(groups, dim=1) for part in (key_DKSE, value_DKSE))
    scores_DHSS = query_DHSE @ key_DHSE.transpose(-1, -2) * scoring.scale
    scores_DHSS = scores_DHSS.to(_wide(scores_DHSS.dtype))
    if scoring.softcap is not None:
        scores_DHSS = scoring.softcap * torch.tanh(scores_DHSS / scoring.softcap)
    everything = Block(slice(0, length), slice(0, length))
    scores_DHSS = scores_DHSS.masked_fill(~visible(everything, scoring.window, scores_DHSS.device), float("-inf"))
    if sinks_H is not None:  # a further column that takes weight and has no value
        column = sinks_H.reshape(1, -1, 1, 1).expand(len(scores_DHSS), -1, length, 1).to(scores_DHSS.dtype)
        scores_DHSS = torch.cat([scores_DHSS, column], dim=-1)
    weights = scores_DHSS.softmax(dim=-1).to(value_DHSE.dtype)[..., :length]
    return functional.dropout(weights, dropout) @ value_DHSE


class _ScoredAttention(torch.autograd.Function):
    """The implementation of `scored_attention`.

    The queries that share a key head form one matrix [D, K, H / K x B, E], so keys are not repeated.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, sinks: Any, scoring: Scoring) -> torch.Tensor:
        out = query.new_empty(*query.shape[:3], value.shape[-1])
        sums_DHS = query.new_empty(query.shape[:3], dtype=_wide(query.dtype))
        for block in _blocks_of(query, scoring):
            raw = _raw(_folded(query, key, block), key, block, scoring)
            scores = raw if scoring.softcap is None else raw.mul_(scoring.softcap)
            _hide(scores, float("-inf"), block, scoring)
            # A softmax in place, kept unnormalized: dividing the output instead is cheaper.
            highest = scores.amax(-1, keepdim=True)
            if sinks is None:
                total = scores.sub_(highest).exp_().sum(-1, keepdim=True)
            else:  # like a further key, which adds to the sum and has no value
                column = sinks.to(scores.dtype).reshape(1, scores.shape[1], -1, 1, 1)
                highest = torch.maximum(highest, column)
                total = scores.sub_(highest).exp_().sum(-1, keepdim=True) + (column - highest).exp()
            sums = (scores.flatten(2, 3).to(value.dtype) @ value[:, :, block.keys]).unflatten(2, scores.shape[2:4])
            out[:, :, block.queries] = (sums / total).flatten(1, 2)
            sums_DHS[:, :, block.queries] = (highest + total.log()).squeeze(-1).flatten(1, 2)
        ctx.save_for_backward(query, key, value, sinks, out, sums_DHS)
        ctx.scoring = scoring
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:  # type: ignore[override]
        query, key, value, sinks, out, sums_DHS = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        # The softmax backward needs sum(weights * their gradients) per query. As in FlashAttention, it equals
        # sum(output * its gradient), so it is known before the blocks.
        mean_DHS = (grad * out).sum(-1, dtype=sums_DHS.dtype)
        # A query is in one block, a key may be in several, whose gradients are summed in at least float32.
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=sums_DHS.dtype) for tensor in (key, value))
        for block in _blocks_of(query, scoring):
            own, own_grad = (_folded(tensor, key, block) for tensor in (query, grad))
            raw = _raw(own, key, block, scoring)
            weights = raw if scoring.softcap is None else raw * scoring.softcap
            weights = weights.sub_(_column(sums_DHS, raw, block)).exp_()
            _hide(weights, 0.0, block, scoring)
            grads = (own_grad @ value[:, :, block.keys].transpose(-1, -2)).to(raw.dtype).unflatten(2, raw.shape[2:4])
            grads.sub_(_column(mean_DHS, raw, block)).mul_(weights)
            if scoring.softcap is not None:  # the derivative of tanh is 1 - tanh^2, and `raw` is the tanh
                grads.addcmul_(grads * raw, raw, value=-1)
            narrow = grads.flatten(2, 3).to(query.dtype)
            gradient = (narrow @ key[:, :, block.keys]).unflatten(2, raw.shape[2:4])
            grad_query[:, :, block.queries] = (gradient * scoring.scale).flatten(1, 2)
            grad_key[:, :, block.keys] += narrow.transpose(-1, -2) @ (own * scoring.scale)
            grad_value[:, :, block.keys] += weights.flatten(2, 3).to(grad.dtype).transpose(-1, -2) @ own_grad
        grad_sinks = None
        if sinks is not None:
            shares_DHS = (sinks.to(sums_DHS.dtype)[:, None] - sums_DHS).exp_()
            grad_sinks = -(shares_DHS * mean_DHS).sum((0, 2)).to(sinks.dtype)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), grad_sinks, None


def _blocks_of(query_DHSE: torch.Tensor, scoring: Scoring) -> Iterator[Block]:
    num_documents, heads, length, _ = query_DHSE.shape
    return blocks(
        length,
        scoring.window,
        block_queries(num_documents * heads, length, scoring.window, query_DHSE.device.type),
    )


def _folded(tensor_DHSE: torch.Tensor, key_DKSE: torch.Tensor, block: Block) -> torch.Tensor:
    """Returns the queries of a block, or their gradients, grouped by key head [D, K, H / K x B, E]."""
    return tensor_DHSE[:, :, block.queries].unflatten(1, (key_DKSE.shape[1], -1)).flatten(2, 3)


def _raw(own: torch.Tensor, key_DKSE: torch.Tensor, block: Block, scoring: Scoring) -> torch.Tensor:
    """Returns the scores of a block [D, K, H / K, B, N]; with a softcap, divided by it, so between -1 and 1."""
    scale = scoring.scale / (scoring.softcap or 1.0)
    scores = (own * scale) @ key_DKSE[:, :, block.keys].transpose(-1, -2)
    scores = scores.to(_wide(scores.dtype)).unflatten(2, (-1, block.queries.stop - block.queries.start))
    return scores if scoring.softcap is None else scores.tanh_()


def _hide(scores: torch.Tensor, value: float, block: Block, scoring: Scoring) -> None:
    """Fills scores [..., B, N] with a value in place where a query does not see a key."""
    # Two small triangles, since only the last B keys can be after a query, and only the first ones before its window.
    queries, keys = block.queries, block.keys
    num_queries = queries.stop - queries.start
    after = torch.ones(num_queries, num_queries, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., -num_queries:].masked_fill_(after, value)
    num_before = 0 if scoring.window is None else queries.stop - scoring.window - keys.start
    if num_before > 0:
        before = torch.ones(num_queries, num_before, dtype=torch.bool, device=scores.device)
        before.tril_(queries.start - scoring.window - keys.start)
        scores[..., :num_before].masked_fill_(before, value)


def _column(tensor_DHS: torch.Tensor, scores: torch.Tensor, block: Block) -> torch.Tensor:
    """Returns the values of a block's queries, to broadcast over scores [D, K, H / K, B, 1]."""
    return tensor_DHS[:, :, block.queries].unflatten(1, scores.shape[1:3]).unsqueeze(-1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    # A softmax in 16 bits would lose precision; float64 stays.
    return torch.promote_types(dtype, torch.float32)
