# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face language model that takes flat batches, or padded ones where it cannot."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from oumi.core.batch import Batch, Prediction
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.interface import Documents
from oumi.core.models.lm_head import ModelHead


class LanguageModel(torch.nn.Module):
    """Gives the hidden states at the trained positions of a batch, and the head that makes logits of them."""

    def __init__(self, inner: Any, is_flat: bool, head: ModelHead | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.is_flat = is_flat
        self.training = inner.training
        base = below_adapter(inner)
        config = base.config
        self._decoder = [base.base_model]  # in a list, so that it counts as no part of its own
        self._head = head
        self._documents = Documents()
        self._image_token: int | None = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        # In training, Gemma 3 demands them even where no token stands for an image.
        takes = inspect.signature(base.forward).parameters
        self._names_of_kinds = [name for name in ("token_type_ids", "mm_token_type_ids") if name in takes]
        # Qwen's models place the parts of an image in a plane, which only the model knows to do.
        self._places = getattr(getattr(base, "model", None), "get_rope_index", None)

    @property
    def has_full_head(self) -> bool:
        """Returns True if logits are computed where nothing is trained, too."""
        return not self.is_flat and self._head is None

    def tie(self) -> None:
        """Lets the gradient of a head that is the embedding, too, be made once, see `tied_embedding.py`."""
        if self._head is not None:
            self._head.tie()

    def forward(self, batch: Batch) -> Prediction:
        """Returns the model's prediction at the positions `batch.trained`."""
        inputs = self._flat(batch) if self.is_flat else self._padded(batch)
        if self._head is not None:  # the loss takes the head's product itself, in parts
            states = self._decoder[0](**inputs, use_cache=False).last_hidden_state
        elif self.is_flat:  # transformers computes the logits where they are needed only
            return Prediction(self.inner(**inputs, use_cache=False, logits_to_keep=batch.trained).logits[0])
        else:
            states = self.inner(**inputs, use_cache=False).logits
        flat = states[0] if self.is_flat else states[inputs["attention_mask"].bool()]
        return Prediction(flat[batch.trained], None if self._head is None else self._head.current())

    def _flat(self, batch: Batch) -> dict[str, Any]:
        """Returns the batch as one row without a mask, by the names of transformers."""
        self._documents.fill(batch.offsets)
        return {
            "input_ids": batch.tokens[None],
            "position_ids": self._positions(batch),
            "documents": self._documents,
            **self._image_inputs(batch, batch.tokens[None]),
        }

    def _padded(self, batch: Batch) -> dict[str, Any]:
        """Returns each document as a row of its own, padded on the right to the longest."""
        documents = torch.split(batch.tokens, batch.lengths)
        positions = torch.split(self._positions(batch), batch.lengths, dim=-1)
        tokens_DS = pad_sequence(list(documents), batch_first=True)
        is_token_DS = pad_sequence([torch.ones_like(d) for d in documents], batch_first=True)
        longest = tokens_DS.shape[1]
        return {
            "input_ids": tokens_DS,
            "attention_mask": is_token_DS,
            "position_ids": torch.cat([F.pad(row, (0, longest - row.shape[-1])) for row in positions], dim=-2),
            **self._image_inputs(batch, tokens_DS),
        }

    def _image_inputs(self, batch: Batch, tokens_DS: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the inputs beside tokens: the features of images, and which tokens are placeholders of them."""
        if self._image_token is None:
            return {}
        kinds = {name: (tokens_DS == self._image_token).long() for name in self._names_of_kinds}
        return {**batch.features, **kinds}

    def _positions(self, batch: Batch) -> torch.Tensor:
        """Returns the positions [1, T], or their three parts [3, 1, T] where a model places images in a plane."""
        if not batch.num_images or self._places is None:
            return batch.positions[None]
        parts, first = [], 0
        for document, count in zip(batch.documents(), batch.num_images, strict=True):
            last = first + count
            kinds = (document.tokens == self._image_token).long()
            shapes = batch.features["image_grid_thw"][first:last] if count else None
            positions, _ = self._places(document.tokens[None], mm_token_type_ids=kinds[None], image_grid_thw=shapes)
            parts.append(positions)
            first = last
        return torch.cat(parts, dim=-1)
