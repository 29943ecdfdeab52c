# SPDX-License-Identifier: Apache-2.0
"""Liger's kernels give the losses and gradients of a model's own layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.batch import collate
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.acceleration.liger import use_liger
from oumi.core.types.example import Example, Source

SMALL = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).to("cuda").train()


def loss_and_gradient(inner: Any) -> tuple[float, torch.Tensor]:
    rows = [Example(np.arange(3, 3 + n).astype(np.int32), np.ones(n, bool), Source("", "", 0)) for n in (7, 3, 40)]
    loss = next_token_loss(make_flat(inner, None), collate(rows).to(torch.device("cuda")))
    loss.backward()
    return loss.item(), torch.cat([weight.grad.flatten() for weight in inner.parameters()])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_liger_computes_what_the_model_does(kind: str) -> None:
    pytest.importorskip("liger_kernel")
    loss, gradient = loss_and_gradient(model_of(kind))
    inner = model_of(kind)
    use_liger(inner)
    assert "Liger" in inner.model.layers[0].mlp.forward.__qualname__
    fused_loss, fused_gradient = loss_and_gradient(inner)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    assert float((fused_gradient - gradient).norm() / gradient.norm()) < 1e-4
