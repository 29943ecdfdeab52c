# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings that follow the length of a sequence give each document the frequencies of its own length."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from oumi.core.models.attention.interface import Documents
from oumi.core.models.attention.rope import separate_documents, separate_rows
from tests.tiny import tiny_llama

ORIGINAL = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL, "factor": 4.0,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    },
}  # fmt: skip


def rotary(kind: str) -> Any:
    model = tiny_llama(max_position_embeddings=ORIGINAL, rope_parameters=SETTINGS[kind], num_hidden_layers=1)
    return model.model.rotary_emb


def tables(module: Any, positions: torch.Tensor) -> torch.Tensor:
    return torch.stack(module(torch.zeros(1), positions))


@pytest.mark.parametrize("kind", SETTINGS)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 3 * ORIGINAL), min_size=1, max_size=6))
def test_a_document_has_the_angles_that_it_has_alone_whatever_is_beside_or_before_it(
    kind: str, lengths: list[int]
) -> None:
    module, documents = rotary(kind), Documents()
    separate_documents(module, documents)
    alone = [tables(rotary(kind), torch.arange(length)[None]) for length in lengths]
    positions = [torch.arange(length) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(positions, batch_first=True)
    for _ in range(2):
        documents.fill((0, *torch.tensor(lengths).cumsum(0).tolist()))
        flat = tables(module, torch.cat(positions)[None])
        assert torch.equal(flat, torch.cat(alone, dim=-2))
        documents.fill((0,))
        rows = tables(module, padded)
        for i, (length, expected) in enumerate(zip(lengths, alone, strict=True)):
            assert torch.equal(rows[:, i, :length], expected[:, 0])


def test_other_rotary_embeddings_are_left_alone() -> None:
    model = tiny_llama()
    separate_documents(model, Documents())
    assert "forward" not in vars(model.model.rotary_emb)


@pytest.mark.parametrize("is_adapted", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_row_of_a_padded_batch_has_the_logits_that_it_has_alone(kind: str, side: str, is_adapted: bool) -> None:
    def build() -> Any:
        model = tiny_llama(max_position_embeddings=ORIGINAL, rope_parameters=SETTINGS[kind], num_hidden_layers=1)
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if is_adapted else model

    model = build()
    separate_rows(model)
    rows = [torch.arange(length) * 7 % 250 + 5 for length in (3 * ORIGINAL, 5, 2 * ORIGINAL)]
    tokens, mask = (
        torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side=side)
        for parts in (rows, [torch.ones_like(row) for row in rows])
    )
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask).logits
        for i, row in enumerate(rows):
            torch.testing.assert_close(logits[i, mask[i].bool()], build()(input_ids=row[None]).logits[0])


def test_rows_that_a_model_does_not_tell_apart_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    module, logger = rotary("dynamic"), logging.getLogger("oumi")
    separate_documents(module, Documents())
    logger.addHandler(caplog.handler)
    module(torch.zeros(2, 40, 64), torch.arange(40)[None])
    num_messages = len(caplog.messages)  # 2 where the log of oumi also propagates
    module(torch.zeros(2, 40, 64), torch.arange(40)[None])
    logger.removeHandler(caplog.handler)
    assert len(caplog.messages) == num_messages
    assert set(caplog.messages) == {"numbers depend on the longest row of a batch: LlamaRotaryEmbedding has one length"}
