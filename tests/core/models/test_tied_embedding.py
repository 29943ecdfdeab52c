# SPDX-License-Identifier: Apache-2.0
"""A head that is the embedding, too: one gradient of the size of the table, and the same numbers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oumi.core.batch import Batch, collate
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.language_model import LanguageModel
from oumi.core.models.tied_embedding import may_tie
from oumi.core.types.example import Example, Source
from tests.tiny import tiny_llama

PADDING = 7


@pytest.mark.parametrize("num_micro_batches", [1, 3])
@pytest.mark.parametrize("padding", [None, PADDING])
def test_gradients_are_those_of_two_uses(padding: int | None, num_micro_batches: int) -> None:
    plain = tiny_llama(tie_word_embeddings=True, pad_token_id=padding).double()
    tied = deepcopy(plain)
    expected = _gradients(make_flat(plain, "sdpa"), num_micro_batches)
    actual = _gradients(_tied(tied), num_micro_batches)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-12, atol=1e-14, msg=name)


def test_the_gradient_of_the_table_is_made_once() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    tied = _tied(model)
    with _TableTensors(model.lm_head.weight) as tensors:
        next_token_loss(tied, _batch(0)).backward()
    assert tensors.storages == {model.lm_head.weight.grad.untyped_storage().data_ptr()}


def test_without_gradients_nothing_is_kept_for_the_head() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    expected = make_flat(deepcopy(model), "sdpa")(_batch(0)).logits()
    tied = _tied(model)
    with torch.no_grad():
        actual = tied(_batch(0))
    assert actual.head is not None
    assert actual.head.weight is model.lm_head.weight
    assert torch.equal(actual.logits(), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.model.embed_tokens, "scale_grad_by_freq", True),
        lambda model: model.lm_head.requires_grad_(False),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach().clone())),
        lambda model: setattr(model.model.embed_tokens, "__class__", _Scaled),
    ],
    ids=["counts tokens", "frozen", "untied", "scaled"],
)
def test_leaves_what_is_no_plain_tied_table(change: Any) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    assert may_tie(model.model.embed_tokens, model.lm_head)
    change(model)
    assert not may_tie(model.model.embed_tokens, model.lm_head)


class _Scaled(torch.nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) * 2


class _TableTensors(TorchDispatchMode):
    """Notes where tensors in the shape of a table lie, and holds none of them."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self._shapes = (table.shape, table.shape[::-1])
        self._own = table.untyped_storage().data_ptr()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape in self._shapes:
            self.storages |= {out.untyped_storage().data_ptr()} - {self._own}
        return out


def _tied(model: Any) -> LanguageModel:
    language_model = make_flat(model, "sdpa")
    language_model.tie()
    return language_model


def _gradients(model: LanguageModel, num_micro_batches: int) -> dict[str, torch.Tensor]:
    for seed in range(num_micro_batches):
        next_token_loss(model, _batch(seed)).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def _batch(seed: int) -> Batch:
    drawn = np.random.default_rng(seed)
    examples = []
    for length in (9, 4, 13):
        tokens = drawn.integers(0, 20, length).astype(np.int32)  # few, so that some stand there more than once
        tokens[length // 2] = PADDING
        examples.append(Example(tokens, drawn.random(length) < 0.7, Source("", "", 0)))
    return collate(examples)
