# SPDX-License-Identifier: Apache-2.0
"""The shared weight of a tied embedding and head, whose gradient is allocated once.

Autograd allocates a gradient of the size of the table for the head, another one for the embedding, although only a few
of its rows are not zero, and their sum. Here the head's gradient flows back through the embedding, which adds its rows
to it in place.

Shape letters: T tokens, V vocabulary, d hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812


class TiedTable:
    """Replaces the forward pass of an embedding, and keeps the table for the head of the same forward pass."""

    def __init__(self, embedding: torch.nn.Embedding) -> None:
        self._embedding = embedding
        self._table_Vd: torch.Tensor | None = None
        # Only the method is replaced, so the module, its weight and the names in a state dict stay.
        embedding.forward = self._rows  # type: ignore[method-assign]

    def take(self) -> torch.Tensor | None:
        """Returns the table for the head and releases it, None if no gradient is computed."""
        table_Vd, self._table_Vd = self._table_Vd, None
        return table_Vd

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        weight_Vd, padding = self._embedding.weight, self._embedding.padding_idx
        if not (torch.is_grad_enabled() and weight_Vd.requires_grad):
            return F.embedding(tokens, weight_Vd)
        rows, self._table_Vd = _Rows.apply(tokens, weight_Vd, padding)
        return rows  # type: ignore[no-any-return]


def may_tie(embedding: Any, head: torch.nn.Linear) -> bool:
    """Returns True for a plain embedding on a CPU that shares its trained weight with the head.

    On a GPU, `index_add_` adds rows in an undefined order. The meta device counts as a CPU, where the model will be.
    """
    weight = head.weight
    is_plain = isinstance(embedding, torch.nn.Embedding) and type(embedding).forward is torch.nn.Embedding.forward
    if not is_plain or embedding.weight is not weight or not weight.requires_grad:
        return False
    # These options change the table in the forward pass, scale its gradient by frequency, or make it sparse.
    has_options = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    return weight.device.type in ("cpu", "meta") and not has_options


class _Rows(torch.autograd.Function):
    """Returns the rows of a table for some tokens, and the table itself as the head's weight.

    The second output makes autograd pass the head's gradient to `backward` instead of adding it up elsewhere.
    """

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
        if ctx.padding is not None:  # as in torch, an embedding does not train its padding row
            d_rows_Td = d_rows_Td * (tokens_T != ctx.padding)[:, None]
        # In place is safe: nothing else holds the head's gradient, which was allocated for this node.
        return None, d_table_Vd.index_add_(0, tokens_T, d_rows_Td.to(d_table_Vd.dtype)), None
