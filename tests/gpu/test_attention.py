# SPDX-License-Identifier: Apache-2.0
"""Attention of all documents by one kernel equals that of each document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import collate
from oumi.core.models.flat import make_flat
from oumi.core.objectives.next_token import next_token_loss
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
    rows = [Example(np.arange(3, 3 + n).astype(np.int32), np.ones(n, bool), Source("", "", 0)) for n in (7, 3, 40)]
    with torch.no_grad():
        alone = torch.cat([inner(torch.tensor(r.tokens[None]).long().cuda()).logits[0][:-1] for r in rows])
        model = make_flat(inner, None)
        found = model(collate(rows).to(torch.device("cuda"))).logits()
    assert model.is_flat
    assert float((found - alone).norm() / alone.norm()) < 0.02


@pytest.mark.gpu
def test_nothing_in_a_forward_and_backward_pass_waits_for_the_device() -> None:
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL)).to("cuda").bfloat16().train()
    model = make_flat(inner, None)
    rows = [Example(np.arange(3, 3 + n).astype(np.int32), np.ones(n, bool), Source("", "", 0)) for n in (7, 3, 40)]
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
