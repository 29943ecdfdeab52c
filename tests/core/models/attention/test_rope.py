# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings that follow the length of a sequence give each document the frequencies of its own length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.models.attention.interface import Documents
from oumi.core.models.attention.rope import separate_documents
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
