# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face language model on flat batches, on padded ones, or on one document at a time."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from oumi.core.batch import Batch, Prediction
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.by_document import run_by_document
from oumi.core.models.attention.interface import Documents
from oumi.core.models.attention.rope import follows_length, separate_documents
from oumi.core.models.lm_head import ModelHead
from oumi.core.models.shared_prefixes import drops_out, share_prefixes, without_ends


class LanguageModel(torch.nn.Module):
    """Computes the hidden states at the trained positions of a batch, and returns them with the head for their logits.

    Without a `head`, it computes the logits themselves. Batches are flat, padded, or taken one document at a time.
    With `shares_prefixes`, flat batches are computed without the tokens that documents of a row have in common.
    In flat batches, the modules `mixers` see each document as a row of its own.
    """

    def __init__(
        self,
        inner: Any,
        is_flat: bool,
        head: ModelHead | None = None,
        one_at_a_time: bool = False,
        shares_prefixes: bool = False,
        mixers: Iterable[torch.nn.Module] = (),
    ) -> None:
        super().__init__()
        self.inner = inner
        self.is_flat = is_flat
        self.shares_prefixes = shares_prefixes
        self._drops = drops_out(inner)
        self._one_at_a_time = one_at_a_time
        self.training = inner.training
        base = below_adapter(inner)
        config = base.config
        self._decoder = [base.base_model]  # in a list, so that it is not registered as a second submodule
        self._head = head
        self._documents = Documents()
        self.own_attention = "sdpa"
        """The attention that the model had before it became flat."""
        separate_documents(base, self._documents)
        self._needs_ends = any(map(follows_length, base.modules()))
        run_by_document(mixers, self._documents)
        self._image_token: int | None = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
        # In training, Gemma 3 requires token types even for a batch without images.
        parameters = inspect.signature(base.forward).parameters
        self._selects_logits = is_flat and head is None and "logits_to_keep" in parameters
        self._type_names = [name for name in ("token_type_ids", "mm_token_type_ids") if name in parameters]
        # Qwen's vision models have 3-D positions for images, which only their own code computes.
        self._rope_index = getattr(getattr(base, "model", None), "get_rope_index", None)

    @property
    def takes_single_documents(self) -> bool:
        """Returns True if the documents of a batch are computed one at a time."""
        return self._one_at_a_time

    @property
    def has_full_head(self) -> bool:
        """Returns True if logits are also computed at positions that are not trained."""
        return self._head is None and not self._selects_logits

    def tie(self) -> None:
        """Computes the gradient of a weight shared by embedding and head only once, see `tied_embedding.py`."""
        if self._head is not None:
            self._head.tie()

    def forget_documents(self) -> None:
        """Drops the documents of the last batch, which rotary embeddings would take for those of the next input."""
        self._documents.fill(())

    def without_copies(self, batch: Batch) -> tuple[Batch, tuple[slice | None, ...]]:
        """Returns what is computed of a batch: all but what `without_ends` and `share_prefixes` leave out."""
        # A token of an image may be seen from before, and some rotary embeddings depend on the length of a document.
        may_cut = self.is_flat and not batch.num_images and not self._needs_ends
        if may_cut and batch.trained.device.type == "cpu":  # a GPU would wait longer for the trained positions
            batch = without_ends(batch)
        # With dropout, the documents of a row would get one mask for their prefix.
        shares = self.shares_prefixes and not batch.num_images and not (self.training and self._drops)
        return share_prefixes(batch) if shares else (batch, ())

    def forward(self, batch: Batch) -> Prediction:
        """Returns the model's prediction at the positions `batch.trained`."""
        batch, prefixes = self.without_copies(batch)
        # Only the model knows which image belongs to which document, so batches with images stay whole.
        documents = list(batch.documents()) if self._one_at_a_time and not batch.num_images else []
        states = torch.cat([self._states(part) for part in documents]) if documents else self._states(batch, prefixes)
        head = None if self._head is None else self._head.current()
        # Of windows of a text, all positions are trained, in order.
        is_whole = self._selects_logits or (len(states) == batch.num_targets and not prefixes)
        return Prediction(states if is_whole else states[batch.trained], head)

    def _states(self, batch: Batch, prefixes: tuple[slice | None, ...] = ()) -> torch.Tensor:
        """Returns the hidden states [T, d], or without a head the logits [T, V], or [N, V] if it selects them."""
        inputs = self.inputs(batch, prefixes)
        if self._head is not None:  # the loss multiplies by the head itself, in chunks, so the decoder alone runs
            states: torch.Tensor = self._decoder[0](**inputs, use_cache=False).last_hidden_state
        elif self._selects_logits:  # with `logits_to_keep`, transformers computes the logits of trained positions only
            states = self.inner(**inputs, use_cache=False, logits_to_keep=batch.trained).logits
        else:
            states = self.inner(**inputs, use_cache=False).logits
        return states[inputs["attention_mask"].bool()] if "attention_mask" in inputs else states[0]

    def inputs(self, batch: Batch, prefixes: tuple[slice | None, ...] = ()) -> dict[str, Any]:
        """Returns the arguments of the forward pass of transformers for a batch.

        A flat batch is one row [1, T] without a mask. Otherwise each document is a row, padded on the right [D, S], or
        the only row, whose positions the model counts by itself.
        """
        inputs: dict[str, Any]
        positions = self._positions(batch)
        if self.is_flat:
            self._documents.fill(batch.offsets, prefixes)
            inputs = {"input_ids": batch.tokens[None], "position_ids": positions, "documents": self._documents}
        elif self._one_at_a_time and not batch.num_images:
            inputs = {"input_ids": batch.tokens[None]}
        else:
            documents = torch.split(batch.tokens, batch.lengths)
            longest = max(batch.lengths)
            rows = torch.split(positions, batch.lengths, dim=-1)
            inputs = {
                "input_ids": pad_sequence(list(documents), batch_first=True),
                "attention_mask": pad_sequence([torch.ones_like(d) for d in documents], batch_first=True),
                "position_ids": torch.cat([F.pad(row, (0, longest - row.shape[-1])) for row in rows], dim=-2),
            }
        if self._image_token is not None:  # pixels and the like, and which tokens are placeholders of images
            is_image = (inputs["input_ids"] == self._image_token).long()
            inputs |= {**batch.features, **dict.fromkeys(self._type_names, is_image)}
        return inputs

    def _positions(self, batch: Batch) -> torch.Tensor:
        """Returns the positions [1, T], or [3, 1, T] (time, height, width) for a batch with images of Qwen's models."""
        if not batch.num_images or self._rope_index is None:
            return batch.positions[None]
        parts, first = [], 0
        for document, count in zip(batch.documents(), batch.num_images, strict=True):
            last = first + count
            kinds = (document.tokens == self._image_token).long()
            shapes = batch.features["image_grid_thw"][first:last] if count else None
            # By document, since `get_rope_index` would number the tokens of all documents in one sequence.
            positions, _ = self._rope_index(document.tokens[None], mm_token_type_ids=kinds[None], image_grid_thw=shapes)
            parts.append(positions)
            first = last
        return torch.cat(parts, dim=-1)
