# SPDX-License-Identifier: Apache-2.0
"""Causal attention of documents on a CPU: one kernel per document, one output tensor for all of them.

Shape letters: T tokens, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from typing import Any

import torch

Part = tuple[slice, slice | None]
"""Tokens of a document, and those of another that it continues."""
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

    A document that continues a prefix of another attends to the prefix and to itself by two kernels. Their outputs are
    joined by their log-sum-exps, from which each kernel's backward pass computes its part of the gradients (as in
    arXiv 2310.01889), so no keys are copied.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_1HTE: torch.Tensor,
        key_1KTE: torch.Tensor,
        value_1KTE: torch.Tensor,
        parts: tuple[Part, ...],
        scale: float | None,
    ) -> torch.Tensor:
        out_1THE = torch.empty_like(query_1HTE.transpose(1, 2), memory_format=torch.contiguous_format)
        # A document at a time: torch has no CPU kernel for sequences of different lengths.
        sums = []
        for own, prefix in parts:
            query, key, value = (tensor[:, :, own] for tensor in (query_1HTE, key_1KTE, value_1KTE))
            out, log_sum = _forward(query, key, value, 0.0, True, scale=scale)
            if prefix is not None:
                of_prefix, prefix_sum = _forward(
                    query, key_1KTE[:, :, prefix], value_1KTE[:, :, prefix], 0.0, False, scale=scale
                )
                share = torch.sigmoid(log_sum - prefix_sum).to(out.dtype)
                out = torch.lerp(of_prefix, out, share[..., None])
                log_sum = torch.logaddexp(log_sum, prefix_sum)
            out_1THE[:, own] = out.transpose(1, 2)
            sums.append(log_sum)
        # From the log-sum-exp of a query, the backward pass recomputes its weights; the weights are not stored.
        ctx.save_for_backward(query_1HTE, key_1KTE, value_1KTE, out_1THE, *sums)
        ctx.parts, ctx.scale = parts, scale
        return out_1THE

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_1HTE, key_1KTE, value_1KTE, out_1THE, *sums = ctx.saved_tensors
        inputs = (query_1HTE, key_1KTE, value_1KTE)
        # Not zeros_like: the documents cover every token, so each element is written once.
        gradients = [torch.empty_like(tensor) for tensor in inputs]
        outward = (upstream[0].transpose(1, 2), *inputs, out_1THE.transpose(1, 2))
        for (own, prefix), log_sum in zip(ctx.parts, sums, strict=True):
            d_out, query, key, value, out = (tensor[:, :, own] for tensor in outward)
            results = _backward(d_out, query, key, value, out, log_sum, 0.0, True, scale=ctx.scale)
            for gradient, result in zip(gradients, results, strict=True):
                gradient[:, :, own] = result
            if prefix is None:
                continue
            key, value = key_1KTE[:, :, prefix], value_1KTE[:, :, prefix]
            results = _backward(d_out, query, key, value, out, log_sum, 0.0, False, scale=ctx.scale)
            # Added, since the document that begins with the prefix comes first and has written its own.
            for gradient, result, place in zip(gradients, results, (own, prefix, prefix), strict=True):
                gradient[:, :, place] += result
        return *gradients, None, None
