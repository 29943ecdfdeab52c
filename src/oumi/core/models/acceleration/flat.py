# SPDX-License-Identifier: Apache-2.0
"""Whether a model may take flat batches: tried before it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from oumi.core.batch import collate
from oumi.core.log import logger
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.interface import FLAT_EAGER, FLAT_SDPA
from oumi.core.models.equivalence import is_close, logits_of, trial
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.lm_head import ModelHead, find_head, makes_logits
from oumi.core.models.twin import NoTrialError, ordinary_tokens, trial_models
from oumi.core.plan.choices import FLAT_ATTENTIONS
from oumi.core.plan.parts import SpeedPlan
from oumi.core.types.example import Example, Source

_WINDOWS = ("sliding_window", "attention_chunk_size")
_NARROW = 4
"""Tokens of a window during the trial."""
_LENGTHS = (12, 1, 40)
"""Tokens of the documents that are compared; all but one are longer than the narrow window."""
_FAR = 10_000
"""A position as in a long document, where a model has so many."""
_NUM_EPS = 256
_FASTEST = SpeedPlan()


def make_flat(inner: Any, attention: str | None, speed: SpeedPlan = _FASTEST) -> LanguageModel:
    """Returns the model on flat batches if that leaves its numbers unchanged, else on padded ones, and logs why.

    Documents in one stream must give the logits that each gives alone by the model's own attention, and changing the
    first must not move the others beyond rounding (the rows of a mixture of experts are multiplied in groups, whose
    size the first document changes). This is tried on the models that `trial_models` yields.
    """
    head = find_head(inner) if speed.fused_loss else None
    reason = _reason_for_padding(inner, attention, speed)
    name = FLAT_EAGER if attention == "eager" else FLAT_SDPA
    try:
        # Nothing is run where neither a head nor flat batches are in question.
        for i, model in enumerate(trial_models(inner) if head or not reason else ()):
            trial_head = find_head(model) if head else None
            if trial_head is None or not makes_logits(trial_head, model):
                head = trial_head = None
            reason = reason or try_flat(model, name, trial_head, first_position=_FAR if i else 0)
    except NoTrialError as error:
        head, reason = None, reason or f"flat batches cannot be tried: {error}"
    if reason:
        logger.warning("batches are padded: %s", reason)
    else:
        _set_attention(inner, name)
    return LanguageModel(inner, not reason, head)


def _reason_for_padding(inner: Any, attention: str | None, speed: SpeedPlan) -> str:
    """Returns why flat batches need not be tried, empty if they are to be."""
    if attention not in FLAT_ATTENTIONS:
        return f"model.attn_implementation {attention} does not separate documents"
    if not speed.flat_batches:
        return "OUMI_WITHOUT names flat"
    if not below_adapter(inner)._supports_attention_backend:
        return f"the attention of {inner.config.model_type} cannot be exchanged"
    return ""


def try_flat(model: Any, name: str, head: ModelHead | None, first_position: int = 0) -> str:
    """Returns why flat batches give other numbers than the model's own attention, empty if they give the same."""
    kind, own = model.config.model_type, model.config._attn_implementation
    tokens = ordinary_tokens(model)
    # A learned table of positions ends, and a document may not be longer.
    most = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    lengths = [min(length, most or length) for length in _LENGTHS]
    first_position = max(min(first_position, most - max(lengths)), 0)
    documents = [_document(tokens, length, 3 * i) for i, length in enumerate(lengths)]
    try:
        with _narrow(model), trial(model):
            alone = []
            for document in documents:
                document_1S = torch.tensor(document.tokens, dtype=torch.long, device=model.device)[None]
                places = torch.arange(document_1S.shape[1], device=model.device)[None] + first_position
                # As most often: without positions, where the model counts by itself.
                inputs = {"position_ids": places} if first_position else {}
                alone.append(logits_of(model, document_1S, **inputs)[:-1])
            expected = torch.cat(alone)
            _set_attention(model, name)
            flat, results = LanguageModel(model, True, head), []
            for start in (0, 11):  # another first document, which must not move the others
                batch = collate([_document(tokens, 5, start), *documents]).to(model.device)
                batch = replace(batch, positions=batch.positions + first_position)
                results.append(flat(batch).logits()[-len(expected) :])
    except TypeError:  # by `flat_attention`, or by a layer that takes no further arguments
        return f"the layers of {kind} do not pass on where documents begin"
    finally:
        _set_attention(model, own)
    # Several layers with large weights make more of a rounding than a single part does.
    if is_close(results[0], expected, _NUM_EPS) and is_close(results[0], results[1], _NUM_EPS):
        return ""
    return f"the attention of {kind} is not causal within a document and a window"


def _set_attention(inner: Any, name: str) -> None:
    """Sets the attention among tokens; that among the parts of an image stays as it is."""
    inner.set_attn_implementation({"text_config": name} if "text_config" in inner.config.sub_configs else name)


@contextmanager
def _narrow(model: Any) -> Iterator[None]:
    """Makes windows and chunks so small that a short document is longer than they are."""
    before = [
        (holder, name, value)
        for holder in (model.config, *model.modules())
        for name in _WINDOWS
        if isinstance(value := getattr(holder, name, None), int)
    ]
    try:
        for holder, name, value in before:
            setattr(holder, name, min(value, _NARROW))
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def _document(vocabulary: list[int], length: int, start: int) -> Example:
    # Neighbors that differ, and repeat late: 7 has no factor in common with most vocabularies.
    places = np.arange(start, start + length) * 7 % len(vocabulary)
    tokens = np.array(vocabulary, dtype=np.int32)[places]
    return Example(tokens, np.ones(length, dtype=np.bool_), Source("", "", 0))
