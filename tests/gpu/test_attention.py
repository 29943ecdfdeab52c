# SPDX-License-Identifier: Apache-2.0
"""Attention of all documents by one kernel equals that of each document alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import collate
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.types.example import Example, Source

SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "sliding_window": 5,
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "olmo2"])
def test_flat_logits_equal_those_of_each_document_alone(model_type: str) -> None:
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL)).eval().to("cuda").bfloat16()
    rows = [
        Example(np.arange(3, 3 + n).astype(np.int32) % 128, np.ones(n, bool), Source("", "", 0))
        for n in (7, 3, 40, 200)
    ]
    with torch.no_grad():
        alone = torch.cat([inner(torch.tensor(r.tokens[None]).long().cuda()).logits[0][:-1] for r in rows])
        model = make_flat(inner, None)
        logits = model(collate(rows).to(torch.device("cuda"))).logits()
    assert model.is_flat
    errors = (logits - alone).float().norm(dim=-1) / alone.float().norm(dim=-1)
    if model_type == "gpt_oss":  # of some tokens rounding decides which experts they see
        errors = errors[errors < errors.quantile(0.9)]
    assert float(errors.max()) < 0.03


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_long_documents_of_one_length_give_the_gradients_of_each_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL)).to("cuda").to(dtype).train()
    rows = [
        Example(np.arange(i, i + 1024).astype(np.int32) % 128, np.ones(1024, bool), Source("", "", 0)) for i in (3, 9)
    ]
    model = make_flat(inner, None)
    actual = gradient(model, [collate(rows)])
    alone = gradient(model, [collate([row]) for row in rows])
    uneven = gradient(model, [collate([rows[0], *cut_in_two(rows[1])])])
    close = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert float((actual - alone).norm() / alone.norm()) < close
    assert float((actual - uneven).norm() / alone.norm()) > close, "documents that are cut are others"


def cut_in_two(row: Example) -> list[Example]:
    parts = (slice(0, 300), slice(300, None))
    return [Example(row.tokens[part], row.is_target[part], row.source) for part in parts]


def gradient(model: torch.nn.Module, batches: list[Any]) -> torch.Tensor:
    model.zero_grad()
    for batch in batches:
        next_token_loss(model, batch.to(torch.device("cuda"))).backward()
    return torch.cat([weight.grad.float().flatten() for weight in model.parameters()])


@pytest.mark.gpu
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])  # experts, as of gpt_oss, are counted on the host
def test_nothing_in_a_forward_and_backward_pass_waits_for_the_device(model_type: str) -> None:
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL)).to("cuda").bfloat16().train()
    model = make_flat(inner, None)
    rows = [
        Example(np.arange(3, 3 + n).astype(np.int32) % 128, np.ones(n, bool), Source("", "", 0))
        for n in (7, 3, 40, 200)
    ]
    batches = [collate(rows).to(torch.device("cuda")) for _ in range(2)]
    next_token_loss(model, batches[0]).backward()  # the first makes workspaces
    inner.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # which raises where something waits
    try:
        next_token_loss(model, batches[1]).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in inner.parameters())
