# SPDX-License-Identifier: Apache-2.0
"""The table of a tied model, which is embedding and head in one: its gradient is made once.

autograd makes a gradient of the size of the table for the head, another for the embedding, which moves a few rows of
it, and their sum. Here the head's gradient passes the embedding on its way back, which adds its rows to it.

Shape letters: T tokens, V vocabulary, d hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812


class TiedTable:
    """Stands in for the embedding of a model, and keeps the table for the head of the same forward pass."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        self._embedding = embedding
        self._table_Vd: torch.Tensor | None = None
        # Only the forward: the module, its weight and what is saved stay as they are.
        embedding.forward = self._rows  # type: ignore[method-assign]

    def take(self) -> torch.Tensor | None:
        """Returns the table for the head and forgets it, None if no gradient is computed."""
        table_Vd, self._table_Vd = self._table_Vd, None
        return table_Vd

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        weight_Vd, padding = self._embedding.weight, self._embedding.padding_idx
        if not (torch.is_grad_enabled() and weight_Vd.requires_grad):
            return F.embedding(tokens, weight_Vd)
        rows, self._table_Vd = _Rows.apply(tokens, weight_Vd, padding)
        return rows  # type: ignore[no-any-return]


def may_tie(embedding: Any, head: torch.nn.Linear) -> bool:
    """Returns True for the plain embedding of a model on a CPU whose weight is the head's, and is trained.

    On a GPU, rows would be added in any order. A model on the meta device counts as one that will be on the CPU.
    """
    weight = head.weight
    is_plain = isinstance(embedding, torch.nn.Embedding) and type(embedding).forward is torch.nn.Embedding.forward
    if not is_plain or embedding.weight is not weight or not weight.requires_grad:
        return False
    # Such embeddings change their table on the way, or scale or store its gradient differently.
    is_odd = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    return weight.device.type in ("cpu", "meta") and not is_odd


class _Rows(torch.autograd.Function):
    """Returns rows of a table, and the table."""

    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, table_Vd: torch.Tensor, padding: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(tokens)
        ctx.padding = padding
        return F.embedding(tokens, table_Vd), table_Vd.view_as(table_Vd)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        d_rows, d_table_Vd = upstream
        tokens_T, d_rows_Td = tokens.flatten(), d_rows.flatten(0, -2)
        if ctx.padding is not None:  # its row is not trained as an embedding
            d_rows_Td = d_rows_Td * (tokens_T != ctx.padding)[:, None]
        # Nobody else holds the head's gradient: it was made for here.
        return None, d_table_Vd.index_add_(0, tokens_T, d_rows_Td.to(d_table_Vd.dtype)), None
