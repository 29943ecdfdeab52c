# SPDX-License-Identifier: Apache-2.0
"""Decides whether a model can train on flat batches, by a trial before training."""

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
"""Tokens of an attention window during the trial."""
_LENGTHS = (12, 1, 40)
"""Tokens of the documents that are compared; all but one are longer than the narrow window."""
_FAR = 10_000
"""First position of a second trial, as in a long document, if the model supports that many."""
_NUM_EPS = 256
_FASTEST = SpeedPlan()


def make_flat(inner: Any, attention: str | None, speed: SpeedPlan = _FASTEST) -> LanguageModel:
    """Returns the model on flat batches if its numbers do not change, otherwise on padded ones, and logs the reason.

    Documents in one stream must give the same logits as each document alone with the model's own attention. Another
    first document must not change the logits of the others beyond rounding. (There is some, since its length changes
    how a mixture of experts groups its rows.) This is verified on the models that `trial_models` yields.
    """
    head = find_head(inner) if speed.fused_loss else None
    name = FLAT_EAGER if attention == "eager" else FLAT_SDPA
    reason = ""
    if attention not in FLAT_ATTENTIONS:
        reason = f"model.attn_implementation {attention} does not separate documents"
    elif not speed.flat_batches:
        reason = "OUMI_WITHOUT names flat"
    elif not below_adapter(inner)._supports_attention_backend:
        reason = f"the attention of {inner.config.model_type} cannot be replaced"
    try:
        # Without a head and without flat batches there is nothing to verify, so no twin is built.
        for i, model in enumerate(trial_models(inner) if head or not reason else ()):
            # A wrong head is dropped for good; a reason is final, too, but the next trial still verifies the head.
            trial_head = find_head(model) if head else None
            if trial_head is None or not makes_logits(trial_head, model):
                head = trial_head = None
            reason = reason or try_flat(model, name, trial_head, first_position=_FAR if i else 0)
    except NoTrialError as error:
        head, reason = None, reason or f"flat batches cannot be verified: {error}"
    if reason:
        logger.warning("batches are padded: %s", reason)
    else:
        _set_attention(inner, name)
    return LanguageModel(inner, not reason, head)


def try_flat(model: Any, name: str, head: ModelHead | None, first_position: int = 0) -> str:
    """Returns why flat batches give other numbers than the model's own attention, or "" if they are equal.

    Args:
        model: A model on which the trial runs; it is restored afterwards.
        name: The attention of flat batches, by its registered name.
        head: The head to compute logits with, None for the model's own.
        first_position: Position of each document's first token.
    """
    kind, original = model.config.model_type, model.config._attn_implementation
    tokens = ordinary_tokens(model)
    # A learned table of positions limits the length of a document.
    max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
    lengths = [min(length, max_positions or length) for length in _LENGTHS]
    first_position = max(min(first_position, max_positions - max(lengths)), 0)
    documents = [_document(tokens, length, 3 * i) for i, length in enumerate(lengths)]
    try:
        with _narrow(model), trial(model):
            alone = []
            for document in documents:
                document_1S = torch.tensor(document.tokens, dtype=torch.long, device=model.device)[None]
                positions_1S = torch.arange(document_1S.shape[1], device=model.device)[None] + first_position
                # From position 0 the model counts by itself, so that the trial covers its own numbering.
                inputs = {"position_ids": positions_1S} if first_position else {}
                alone.append(logits_of(model, document_1S, **inputs)[:-1])
            expected = torch.cat(alone)
            _set_attention(model, name)
            flat, results = LanguageModel(model, True, head), []
            for start in (0, 11):  # two different first documents, neither of which may change the others
                batch = collate([_document(tokens, 5, start), *documents]).to(model.device)
                batch = replace(batch, positions=batch.positions + first_position)
                results.append(flat(batch).logits()[-len(expected) :])
    except TypeError:  # from `flat_attention`, or from a layer without **kwargs
        return f"the layers of {kind} do not pass `documents` to the attention"
    finally:
        _set_attention(model, original)
    # A larger tolerance than for a single module: several layers with large weights amplify rounding.
    if is_close(results[0], expected, _NUM_EPS) and is_close(results[0], results[1], _NUM_EPS):
        return ""
    return f"the attention of {kind} is not causal within a document and a window"


def _set_attention(inner: Any, name: str) -> None:
    """Sets the attention of the text part; a vision part keeps its own."""
    inner.set_attn_implementation({"text_config": name} if "text_config" in inner.config.sub_configs else name)


@contextmanager
def _narrow(model: Any) -> Iterator[None]:
    """Reduces attention windows and chunks in the context, so that short documents are longer than they are."""
    # Layers copy the setting from the config when they are built, so both have it.
    original = [
        (holder, name, value)
        for holder in (model.config, *model.modules())
        for name in _WINDOWS
        if isinstance(value := getattr(holder, name, None), int)
    ]
    try:
        for holder, name, value in original:
            setattr(holder, name, min(value, _NARROW))
        yield
    finally:
        for holder, name, value in original:
            setattr(holder, name, value)


def _document(vocabulary: list[int], length: int, start: int) -> Example:
    # Neighbors differ and the sequence repeats late, since 7 is coprime with the sizes of most vocabularies.
    indices = np.arange(start, start + length) * 7 % len(vocabulary)
    tokens = np.array(vocabulary, dtype=np.int32)[indices]
    return Example(tokens, np.ones(length, dtype=np.bool_), Source("", "", 0))
