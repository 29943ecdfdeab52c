# SPDX-License-Identifier: Apache-2.0
"""Decides whether a model can train on flat batches, by a trial before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from oumi.core.batch import collate
from oumi.core.log import logger
from oumi.core.models.acceleration.mixers import Kind, find_mixers, modules_of
from oumi.core.models.adapters import below_adapter
from oumi.core.models.attention.by_document import run_whole
from oumi.core.models.attention.interface import FLAT_EAGER, FLAT_SDPA, Documents
from oumi.core.models.attention.rope import follows_length, separate_documents
from oumi.core.models.equivalence import first_difference, gradients_of, logits_of, trial
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.lm_head import ModelHead, find_head, makes_logits
from oumi.core.models.twin import NoTrialError, ordinary_tokens, trial_models
from oumi.core.plan.choices import FLAT_ATTENTIONS
from oumi.core.plan.parts import SpeedPlan
from oumi.core.types.example import Example, Source

_WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk")
_NARROW = 4
"""Tokens of an attention window during the trial."""
_LENGTHS = (12, 1, 40, 3, 160)
"""Tokens of the documents that are compared: shorter and longer than the narrow window, and than blocks of keys."""
_FAR = 10_000
"""First position of a second trial, as in a long document, if the model supports that many."""
_NUM_EPS = 256
_FAILURES = (TypeError, RuntimeError, ValueError, LookupError)
_FASTEST = SpeedPlan()


def make_flat(
    inner: Any, attention: str | None, speed: SpeedPlan = _FASTEST, has_prefixes: bool = False
) -> LanguageModel:
    """Returns the model on flat batches if its numbers do not change, else on padded ones, else on single documents.

    Logs the reason unless batches are flat. Logits and gradients of all weights are compared with those of each
    document alone with the model's own attention, on the models that `trial_models` yields. Another first document must
    not change the numbers of the others beyond rounding. (There is some, since its length changes how a mixture of
    experts groups its rows.)

    Args:
        inner: The model, whose attention is replaced if batches are flat.
        attention: Name of the attention of the plan.
        speed: The optimizations that may be used.
        has_prefixes: Documents of a row begin alike, so that the model may compute their prefix once. It is compared
            in the same way.
    """
    own_attention = below_adapter(inner).config.get_text_config()._attn_implementation
    head = find_head(inner) if speed.fused_loss else None
    name = FLAT_EAGER if attention == "eager" else FLAT_SDPA
    reason = padding_reason = ""
    mixers: frozenset[Kind] = frozenset()
    if attention not in FLAT_ATTENTIONS:
        reason = f"model.attn_implementation {attention} does not separate documents"
    elif not speed.flat_batches:
        reason = "OUMI_WITHOUT names flat"
    sharing = "" if has_prefixes and speed.shared_prefixes else "not for this run"
    try:
        for i, model in enumerate(trial_models(inner)):
            # A wrong head is dropped for good; a reason is final, too, but the next trial still verifies the head.
            trial_head = find_head(model) if head else None
            if trial_head is None or not makes_logits(trial_head, model):
                head = trial_head = None
            # Gradients once only, to save time, and not of a model of full size, to save memory.
            reference = Reference(model, first_position=_FAR if i else 0, gradients=i == 0 and model is not inner)
            if not reason and (reason := try_flat(reference, name, trial_head, mixers)) and not mixers:
                mixers = _mixers(reference, name)
                reason = try_flat(reference, name, trial_head, mixers) if mixers else reason
            sharing = sharing or reason or try_sharing(reference, name, trial_head, mixers)
            if reason and model is not inner:  # of full size, it would take as long as steps of training
                padding_reason = padding_reason or try_padded(reference, trial_head)
    except NoTrialError as error:
        head, reason = None, reason or f"flat batches cannot be verified: {error}"
    if padding_reason:
        logger.warning("documents are computed one at a time: %s; %s", reason, padding_reason)
    elif reason:
        logger.warning("batches are padded: %s", reason)
    else:
        _set_attention(inner, name)
        if mixers:
            names = sorted(f"{place} ({cls.__name__})" for place, cls in mixers)
            logger.info("batches are flat; each document is a row of its own in %s", ", ".join(names))
    shares = not (reason or sharing)
    if has_prefixes:
        logger.info("what documents of a row have in common is computed %s", "once" if shares else f"twice: {sharing}")
    modules = [] if reason else modules_of(inner, mixers)
    model = LanguageModel(inner, not reason, head, bool(padding_reason), shares, modules)
    model.own_attention = own_attention
    return model


@contextmanager
def generating(language_model: LanguageModel) -> Iterator[Any]:
    """Yields the model of transformers, ready to generate: in evaluation mode, and with its own attention.

    Flat attention has no cache of keys and values.
    """
    inner = language_model.inner
    was_training = inner.training
    flat = below_adapter(inner).config.get_text_config()._attn_implementation
    language_model.eval()
    language_model.forget_documents()
    if language_model.is_flat:
        _set_attention(inner, language_model.own_attention)
    try:
        yield inner
    finally:
        if language_model.is_flat:
            _set_attention(inner, flat)
        language_model.train(was_training)


class Reference:
    """A model, and its logits and gradients of a few documents, each of them alone with the model's own attention."""

    def __init__(self, model: Any, first_position: int = 0, gradients: bool = True) -> None:
        """Computes them.

        Args:
            model: A model on which the trial runs; it is restored after each trial.
            first_position: Position of each document's first token.
            gradients: Compare also the gradients of all weights.
        """
        self.model = model
        # A learned table of positions limits the length of a document.
        max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", 0)
        lengths = [min(length, max_positions or length) for length in _LENGTHS]
        self._first_position = max(min(first_position, max_positions - max(lengths)), 0)
        tokens = ordinary_tokens(model)
        self._documents = [_document(tokens, length, 3 * i) for i, length in enumerate(lengths)]
        self._others = [_document(tokens, 5, start) for start in (0, 11)]
        self.compares_gradients = gradients
        separate_documents(model, Documents())
        with _narrow(model), trial(model, gradients=gradients):
            self._expected = _numbers(self.model, torch.cat([self._logits(document) for document in self._documents]))

    def difference(self, language_model: LanguageModel) -> str | None:
        """Returns the first numbers that differ if the documents are a batch, None if all are equal.

        There are two batches with different first documents, neither of which may change the numbers of the others.
        """
        num_logits = len(self._expected["logits"])
        with _narrow(self.model), trial(self.model, gradients=self.compares_gradients):
            for i, other in enumerate(self._others):
                batch = collate([other, *self._documents]).to(self.model.device)
                batch = replace(batch, positions=batch.positions + self._first_position)
                with torch.set_grad_enabled(self.compares_gradients and i == 0):
                    numbers = _numbers(self.model, language_model(batch).logits()[-num_logits:])
                # A larger tolerance than for a single module: several layers with large weights amplify rounding.
                if difference := first_difference(numbers, self._expected, _NUM_EPS):
                    return difference
        return None

    def mixers(self) -> frozenset[Kind]:
        """Returns the kinds of modules through which the first document of a batch changes the others."""
        batch = collate([self._others[0], *self._documents]).to(self.model.device)
        documents = Documents()
        documents.fill(batch.offsets)
        inputs = {"input_ids": batch.tokens[None], "position_ids": batch.positions[None], "documents": documents}
        with _narrow(self.model), trial(self.model):
            return find_mixers(self.model, documents, lambda: self.model(**inputs, use_cache=False))

    def _logits(self, document: Example) -> torch.Tensor:
        tokens_1S = torch.tensor(document.tokens, dtype=torch.long, device=self.model.device)[None]
        positions_1S = torch.arange(tokens_1S.shape[1], device=self.model.device)[None] + self._first_position
        # From position 0 the model counts by itself, so that the trial covers its own numbering.
        inputs = {"position_ids": positions_1S} if self._first_position else {}
        return logits_of(self.model, tokens_1S, **inputs)[:-1]


def try_flat(reference: Reference, name: str, head: ModelHead | None, mixers: frozenset[Kind] = frozenset()) -> str:
    """Returns why flat batches give other numbers than documents alone, or "" if they are equal.

    Args:
        reference: The model, and its numbers of documents alone.
        name: The attention of flat batches, by its registered name.
        head: The head to compute logits with, None for the model's own.
        mixers: The kinds of modules that see each document as a row.
    """
    model, kind = reference.model, reference.model.config.model_type
    original = model.config._attn_implementation
    _set_attention(model, name)
    modules = modules_of(model, mixers)
    try:
        difference = reference.difference(LanguageModel(model, True, head, mixers=modules))
    except TypeError:  # from `flat_attention`, or from a layer without **kwargs
        return f"the layers of {kind} do not pass `documents` to the attention"
    except _FAILURES as error:
        return f"flat batches fail in {kind}: {_first_line(error)}"
    finally:
        run_whole(modules)
        _set_attention(model, original)
    if difference is None:
        return ""
    if difference == "logits" and not below_adapter(model)._can_set_attn_implementation():
        return f"the attention of {kind} cannot be replaced"
    if difference == "logits":
        return f"the attention of {kind} is not causal within a document and a window"
    return f"flat batches change the gradient of {difference}"


def try_sharing(reference: Reference, name: str, head: ModelHead | None, mixers: frozenset[Kind]) -> str:
    """Returns why a prefix that documents of a row share is not to be computed once, or "" if no number changes.

    Args:
        reference: A model whose numbers are right on flat batches.
        name: The attention of flat batches, by its registered name.
        head: The head to compute logits with, None for the model's own.
        mixers: The kinds of modules that see each document as a row.
    """
    model, gradients = reference.model, reference.compares_gradients
    kind, original = model.config.model_type, model.config._attn_implementation
    if any(follows_length(module) for module in model.modules()):
        return f"the rotary embeddings of {kind} depend on the length of a document"
    tokens = ordinary_tokens(model)
    prefix, *rests = (_document(tokens, length, start) for length, start in ((25, 0), (15, 40), (7, 3), (31, 60)))
    rows = [_row([_joined(prefix, rest) for rest in rests[:2]]), _row([_joined(prefix, rest) for rest in rests])]
    _set_attention(model, name)
    modules = modules_of(model, mixers)
    try:
        with _narrow(model), trial(model, gradients=gradients):
            batch = collate(rows).to(model.device)
            each_alone, shared = (
                _numbers(
                    model, LanguageModel(model, True, head, shares_prefixes=shares, mixers=modules)(batch).logits()
                )
                for shares in (False, True)
            )
            difference = first_difference(shared, each_alone, _NUM_EPS)
    except _FAILURES as error:
        return _first_line(error)
    finally:
        run_whole(modules)
        _set_attention(model, original)
    return "" if difference is None else f"it would change the numbers of {kind} ({difference})"


def _mixers(reference: Reference, name: str) -> frozenset[Kind]:
    """Returns the kinds of modules that mix the tokens of documents, none if flat batches fail for another reason."""
    model = reference.model
    original = model.config._attn_implementation
    _set_attention(model, name)
    try:
        return reference.mixers()
    except _FAILURES as error:
        logger.debug("no mixers: %s", error)
        return frozenset()
    finally:
        _set_attention(model, original)


def try_padded(reference: Reference, head: ModelHead | None) -> str:
    """Returns why padded batches give other numbers than documents alone, or "" if they are equal."""
    try:
        difference = reference.difference(LanguageModel(reference.model, False, head))
    except _FAILURES as error:
        return f"padded batches fail: {_first_line(error)}"
    return "" if difference is None else f"padded batches change the numbers of documents ({difference})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _set_attention(inner: Any, name: str) -> None:
    """Sets the attention of the text part, if it can be replaced; a vision part keeps its own."""
    if not below_adapter(inner)._can_set_attn_implementation():
        return
    inner.set_attn_implementation({"text_config": name} if "text_config" in inner.config.sub_configs else name)


@contextmanager
def _narrow(model: Any) -> Iterator[None]:
    """Reduces windows, chunks and numbers of chosen keys in the context, so that short documents have more tokens."""
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


def _numbers(model: Any, logits_SV: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": logits_SV.detach(), **gradients_of(model, logits_SV)}


def _joined(*parts: Example) -> Example:
    """Returns one document of the tokens of several."""
    tokens = np.concatenate([part.tokens for part in parts])
    return Example(tokens, np.ones(len(tokens), dtype=np.bool_), parts[0].source)


def _row(documents: Sequence[Example]) -> Example:
    """Returns a row of documents."""
    starts = np.cumsum([0, *(len(document.tokens) for document in documents[:-1])])
    return replace(_joined(*documents), starts=tuple(starts.tolist()))


def _document(vocabulary: list[int], length: int, start: int) -> Example:
    # Neighbors differ and the sequence repeats late, since 7 is coprime with the sizes of most vocabularies.
    indices = np.arange(start, start + length) * 7 % len(vocabulary)
    tokens = np.array(vocabulary, dtype=np.int32)[indices]
    return Example(tokens, np.ones(length, dtype=np.bool_), Source("", "", 0))
