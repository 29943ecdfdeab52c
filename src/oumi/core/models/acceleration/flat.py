# SPDX-License-Identifier: Apache-2.0
"""Whether a model may take flat batches: tried on the model itself, before it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from oumi.core.batch import collate
from oumi.core.log import logger
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.interface import FLAT_EAGER, FLAT_SDPA
from oumi.core.models.equivalence import evaluating, is_close, logits_of
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.lm_head import LmHeadFinder
from oumi.core.plan.choices import FLAT_ATTENTIONS
from oumi.core.plan.parts import SpeedPlan
from oumi.core.types.example import Example, Source

_WINDOWS = ("sliding_window", "attention_chunk_size")
_NARROW = 4
"""Tokens."""
_FASTEST = SpeedPlan()


def make_flat(inner: Any, attention: str | None, speed: SpeedPlan = _FASTEST) -> LanguageModel:
    """Returns the model on flat batches if that leaves its numbers unchanged, else on padded ones, and says why.

    Whether it does is tried on the model itself: two documents in one stream must give the logits that each
    gives alone by the model's own attention, and changing the first must not move the second beyond rounding
    (the rows of a mixture of experts are multiplied in groups, whose size the first document changes).
    """
    head = LmHeadFinder(inner) if speed.fused_loss else None
    why = _why_not_flat(inner, attention, head, speed)
    if why:
        logger.warning("batches are padded: %s", why)
    return LanguageModel(inner, not why, head)


def _why_not_flat(inner: Any, attention: str | None, head: LmHeadFinder | None, speed: SpeedPlan) -> str:
    """Sets the model to flat attention and returns nothing, or leaves it as it was and returns the reason."""
    kind = inner.config.model_type
    if attention not in FLAT_ATTENTIONS:
        return f"model.attn_implementation {attention} does not tell documents apart"
    if not speed.flat_batches:
        return "as OUMI_WITHOUT asks"
    if not _takes_interface(inner):
        return f"the attention of {kind} cannot be exchanged"
    own = inner.config._attn_implementation
    try:
        with _narrow(inner), evaluating(inner):
            alone = _alone(inner)
            _set_attention(inner, FLAT_EAGER if attention == "eager" else FLAT_SDPA)
            is_same = _is_same(LanguageModel(inner, True, head), alone)
    except TypeError:
        _set_attention(inner, own)
        return f"the layers of {kind} do not pass on where documents begin"
    if is_same:
        return ""
    _set_attention(inner, own)
    return f"{kind} lets a token see otherwise than causally within its document and window"


def _set_attention(inner: Any, name: str) -> None:
    """Sets the attention among tokens; that among the parts of an image stays as it is."""
    inner.set_attn_implementation({"text_config": name} if "text_config" in inner.config.sub_configs else name)


def _takes_interface(inner: Any) -> bool:
    base = below_adapter(inner)
    return bool(base._supports_attention_backend)


@contextmanager
def _narrow(inner: Any) -> Iterator[None]:
    """Makes windows and chunks so small that a short document is longer than they are."""
    holders = [inner.config, *inner.modules()]
    before = [
        (holder, name, value)
        for holder in holders
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


def _alone(inner: Any) -> torch.Tensor:
    """Returns the logits of the second document by the model's own attention."""
    tokens = torch.from_numpy(_second(inner).tokens)[None].long().to(_device(inner))
    return logits_of(inner, tokens)[:-1]


def _is_same(flat: LanguageModel, alone: torch.Tensor) -> bool:
    vocabulary = _vocabulary(flat.inner)
    outputs = [
        flat(collate([_document(5, vocabulary, start), _second(flat.inner)]).to(_device(flat.inner))).logits()[
            -len(alone) :
        ]
        for start in (0, 11)
    ]
    return is_close(outputs[0], alone) and is_close(outputs[0], outputs[1])


def _second(inner: Any) -> Example:
    return _document(3 * _NARROW, _vocabulary(inner), 3)


def _vocabulary(inner: Any) -> int:
    return int(inner.get_input_embeddings().num_embeddings)


def _device(inner: Any) -> torch.device:
    device: torch.device = next(inner.parameters()).device
    return device


def _document(length: int, vocabulary: int, start: int) -> Example:
    tokens = (np.arange(start, start + length) * 7 % max(vocabulary - 1, 1)).astype(np.int32)
    return Example(tokens, np.ones(length, dtype=np.bool_), Source("", "", 0))
