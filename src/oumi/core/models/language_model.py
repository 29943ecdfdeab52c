# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face language model that takes flat batches, or padded ones where it cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from oumi.core.batch import Batch


class LanguageModel(torch.nn.Module):
    """Gives logits [N, V] at the trained positions of a batch."""

    def __init__(self, inner: Any, is_flat: bool) -> None:
        super().__init__()
        self.inner = inner
        self.is_flat = is_flat
        self.training = inner.training

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns logits [N, V] at `batch.trained`."""
        return self._flat(batch) if self.is_flat else self._padded(batch)

    def _flat(self, batch: Batch) -> torch.Tensor:
        output = self.inner(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.trained,
            document_offsets=batch.offsets,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _padded(self, batch: Batch) -> torch.Tensor:
        """Runs each document as a row of its own, padded on the right to the longest."""
        documents = torch.split(batch.tokens, _lengths(batch))
        positions = torch.split(batch.positions, _lengths(batch))
        tokens_DS = pad_sequence(list(documents), batch_first=True)
        is_token_DS = pad_sequence([torch.ones_like(d) for d in documents], batch_first=True)
        output = self.inner(
            input_ids=tokens_DS,
            attention_mask=is_token_DS,
            position_ids=pad_sequence(list(positions), batch_first=True),
            use_cache=False,
        )
        return output.logits[is_token_DS.bool()][batch.trained]


def _lengths(batch: Batch) -> list[int]:
    return [b - a for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
