# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face language model that takes flat batches, or padded ones where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from oumi.core.batch import Batch, collate
from oumi.core.models.attention import FLAT_EAGER, FLAT_SDPA
from oumi.core.types.example import Example, Source


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


def make_flat(inner: Any, attention: str | None) -> LanguageModel:
    """Returns the model on flat batches if that leaves its numbers unchanged, else on padded ones.

    Whether it does is tried on the model itself: two documents in one stream must give the logits that
    each gives alone, and changing the first must not move the second beyond rounding (the rows of a
    mixture of experts are multiplied in groups, whose size the first document changes).
    """
    own = inner.config._attn_implementation
    if attention in (None, "sdpa", "eager") and _takes_interface(inner):
        inner.set_attn_implementation(FLAT_EAGER if attention == "eager" else FLAT_SDPA)
        if _keeps_documents_apart(LanguageModel(inner, is_flat=True)):
            return LanguageModel(inner, is_flat=True)
        inner.set_attn_implementation(own)
    return LanguageModel(inner, is_flat=False)


def _takes_interface(inner: Any) -> bool:
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return bool(base._supports_attention_backend)


@torch.no_grad()
def _keeps_documents_apart(model: LanguageModel) -> bool:
    device = next(model.parameters()).device
    vocabulary = model.inner.get_input_embeddings().num_embeddings
    first, second = (_document(length, vocabulary, start) for length, start in ((5, 0), (9, 3)))
    changed = _document(5, vocabulary, 11)
    was_training = model.training
    model.eval()
    try:
        together, alone, beside_other = (
            model(collate(documents).to(device)) for documents in ([first, second], [second], [changed, second])
        )
    except TypeError:  # its layers do not pass on what they are not told of
        return False
    finally:
        model.train(was_training)
    after = together[-len(alone) :]
    return _close(after, beside_other[-len(alone) :]) and _close(after, alone)


def _document(length: int, vocabulary: int, start: int) -> Example:
    tokens = (np.arange(start, start + length) * 7 % max(vocabulary - 1, 1)).astype(np.int32)
    return Example(tokens, np.ones(length, dtype=np.bool_), Source("", "", 0))


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Returns True if the two differ by rounding only."""
    error = (found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-12)
    return error.item() < 64 * torch.finfo(found.dtype).eps


def _lengths(batch: Batch) -> list[int]:
    return [b - a for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
