# SPDX-License-Identifier: Apache-2.0
"""Law 2: packed = padded = one by one, and no document sees another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import collate
from oumi.core.models.acceleration.cpu_layers import fuse_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.language_model import LanguageModel
from oumi.core.types.example import Example, Source
from tests.runs import tiny_rows
from tests.tiny import tiny_llama

_SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FLAT = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "phi3",
    "granite",
    "gpt2",
    "mixtral",
    "mamba",
    "falcon_h1",
]
PADDED = ["bloom", "nemotron"]


# Eager attention of transformers takes its softmax in float32, whatever the model's dtype.
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-10), ("eager", 1e-6)])
@torch.no_grad()
def test_packed_equals_padded_equals_one_by_one(tmp_path: Path, attention: str, tolerance: float) -> None:
    rows = tiny_rows(tmp_path)
    inner = tiny_llama().double().eval()
    alone = torch.cat([inner(torch.tensor(row.tokens[None]).long()).logits[0] for row in rows])
    batch = collate(rows)
    # A position's logits tell the next token, so those of a document's last token are never trained.
    expected = alone[batch.trained]
    padded = LanguageModel(inner, is_flat=False)(batch).logits()
    packed = make_flat(inner, attention)
    assert packed.is_flat
    for logits in (padded, packed(batch).logits()):
        assert float((logits - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_changing_one_document_leaves_the_others_bitwise_unchanged(
    tmp_path: Path, attention: str, is_fused: bool
) -> None:
    rows, inner = tiny_rows(tmp_path), tiny_llama().eval()
    if is_fused:
        fuse_layers(inner)
    model = make_flat(inner, attention)
    before = model(collate(rows)).logits()
    num_first = collate(rows[:1]).num_targets
    rows[0].tokens[:] = (rows[0].tokens + 7) % 250
    after = model(collate(rows)).logits()
    assert not torch.equal(before[:num_first], after[:num_first])
    assert torch.equal(before[num_first:], after[num_first:])


@pytest.mark.parametrize("model_type", FLAT + PADDED)
def test_every_architecture_gives_the_logits_of_each_document_alone(model_type: str) -> None:
    model, error = _error(model_type, _settings(model_type))
    assert model.is_flat == (model_type in FLAT)
    assert error < 1e-5


# Scores that see five tokens back, are capped, or lose weight to a sink.
@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_windows_caps_and_sinks_are_exact(model_type: str) -> None:
    model, error = _error(model_type, {**_SMALL, "sliding_window": 5})
    assert model.is_flat
    assert error < 1e-5


# Chunks, and a window that only the mask tells of: nothing that attention within documents is told.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 96}),
        ("llama4_text", {"attention_chunk_size": 40, "num_local_experts": 2, "intermediate_size_mlp": 96}),
        ("phimoe", {"sliding_window": 5, "num_local_experts": 2}),
        ("phimoe", {"sliding_window": 40, "num_local_experts": 2}),
    ],
)
def test_what_attention_is_not_reported_of_gives_padded_batches(
    model_type: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    model, error = _error(model_type, {**_SMALL, **settings}, dtype)
    assert not model.is_flat
    assert error < (1e-5 if dtype == torch.float32 else 0.02)


def test_why_batches_are_padded_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("oumi").addHandler(caplog.handler)
    try:
        for model_type in ("nemotron", "bloom", "llama"):
            _error(model_type, _SMALL)
    finally:
        logging.getLogger("oumi").removeHandler(caplog.handler)
    messages = [message for message in caplog.messages if message.startswith("batches are padded")]
    assert list(dict.fromkeys(messages)) == [
        "batches are padded: the layers of nemotron do not pass `documents` to the attention",
        "batches are padded: the attention of bloom cannot be replaced",
    ]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "mixtral"])
def test_a_model_of_half_precision_is_flat_too(model_type: str) -> None:
    model, error = _error(model_type, {**_settings(model_type), "sliding_window": 5}, torch.bfloat16)
    assert model.is_flat
    assert error < 0.02


# Then all of them are taken by one call.
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma2", "gpt_oss", "gpt2"])
def test_documents_of_one_length_are_exact(model_type: str) -> None:
    model, error = _error(model_type, {**_settings(model_type), "sliding_window": 5}, lengths=(9, 9, 9))
    assert model.is_flat
    assert error < 1e-5


def _error(
    model_type: str,
    settings: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    lengths: tuple[int, ...] = (7, 3, 12),
) -> tuple[LanguageModel, float]:
    """Returns a random model on flat or padded batches, and how far its logits are from each document alone."""
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval().to(dtype)
    rows = [
        Example(((np.arange(n) * 5 + n + i) % 120 + 3).astype(np.int32), np.ones(n, bool), Source("", "", 0))
        for i, n in enumerate(lengths)
    ]
    with torch.no_grad():
        alone = torch.cat([inner(torch.tensor(row.tokens[None]).long()).logits[0][:-1] for row in rows])
        model = make_flat(inner, None)
        logits = model(collate(rows)).logits()
    return model, float((logits - alone).norm() / alone.norm())


def _settings(model_type: str) -> dict[str, Any]:
    if model_type == "gpt2":
        return {
            "vocab_size": 128,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    if model_type == "mixtral":
        return {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
    if model_type == "falcon_h1":  # whose state-space layers are large by default
        return {**_SMALL, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_chunk_size": 16}
    return dict(_SMALL)
