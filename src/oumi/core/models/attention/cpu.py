# SPDX-License-Identifier: Apache-2.0
"""Causal attention of documents on a CPU: one kernel per document, one output tensor for all of them.

Shape letters: T tokens, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def takes_cpu_kernel(query_1HTE: torch.Tensor, key_1KTE: torch.Tensor, value_1KTE: torch.Tensor) -> bool:
    """Returns True if torch's CPU kernel supports the inputs: equal head sizes, contiguous in the last dimension."""
    inputs = (query_1HTE, key_1KTE, value_1KTE)
    # The kernel is called directly, so what SDPA would pad or reject for it is excluded here.
    if len({tensor.shape[-1] for tensor in inputs}) > 1 or query_1HTE.shape[1] % key_1KTE.shape[1]:
        return False
    return all(tensor.device.type == "cpu" and tensor.stride(-1) == 1 for tensor in inputs)


class DocumentAttention(torch.autograd.Function):
    """Attention [1, T, H, E] in which each token sees its own document up to itself (arXiv 2205.14135).

    It computes `scaled_dot_product_attention` for each document. With that function, all outputs would be in memory
    twice: once per document for its backward pass, and once concatenated for the next layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_1HTE: torch.Tensor,
        key_1KTE: torch.Tensor,
        value_1KTE: torch.Tensor,
        offsets: tuple[int, ...],
        scale: float | None,
    ) -> torch.Tensor:
        out_1THE = torch.empty_like(query_1HTE.transpose(1, 2), memory_format=torch.contiguous_format)
        # A document at a time: torch has no CPU kernel for sequences of different lengths.
        sums = []
        for first, end in pairwise(offsets):
            document = (tensor[:, :, first:end] for tensor in (query_1HTE, key_1KTE, value_1KTE))
            out, log_sum = _forward(*document, 0.0, True, scale=scale)
            out_1THE[:, first:end] = out.transpose(1, 2)
            sums.append(log_sum)
        # From the log-sum-exp of a query, the backward pass recomputes its weights; the weights are not stored.
        ctx.save_for_backward(query_1HTE, key_1KTE, value_1KTE, out_1THE, *sums)
        ctx.offsets, ctx.scale = offsets, scale
        return out_1THE

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_1HTE, key_1KTE, value_1KTE, out_1THE, *sums = ctx.saved_tensors
        inputs = (query_1HTE, key_1KTE, value_1KTE)
        # Not zeros_like: the documents cover every token, so each element is written once.
        gradients = [torch.empty_like(tensor) for tensor in inputs]
        outward = (upstream[0].transpose(1, 2), *inputs, out_1THE.transpose(1, 2))
        for (first, end), log_sum in zip(pairwise(ctx.offsets), sums, strict=True):
            document = (tensor[:, :, first:end] for tensor in outward)
            parts = _backward(*document, log_sum, 0.0, True, scale=ctx.scale)
            for gradient, part in zip(gradients, parts, strict=True):
                gradient[:, :, first:end] = part
        return *gradients, None, None
