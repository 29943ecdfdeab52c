# SPDX-License-Identifier: Apache-2.0
"""Linear layers with an adapter in one function: the numbers of PEFT, and only where nothing else acts on them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oumi.core.models.acceleration.cpu_layers import fuse_layers
from tests.tiny import tiny_llama


def adapted(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """Returns a tiny model with an adapter that has moved."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **settings)
    model = get_peft_model(tiny_llama(), config).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    return model


def numbers(model: Any) -> list[torch.Tensor]:
    """Returns the logits of a few tokens, and the gradients of all trained weights."""
    model.zero_grad()
    logits = model(input_ids=torch.arange(3, 30)[None]).logits
    logits.square().mean().backward()
    return [logits.detach(), *(weight.grad for weight in model.parameters() if weight.requires_grad)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_numbers_are_those_of_peft(dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(dtype)
    fused = deepcopy(model)
    assert fuse_layers(fused)["adapters"] == 14
    for result, expected in zip(numbers(fused), numbers(model), strict=True):
        assert (result - expected).norm() <= tolerance * expected.norm()
    with fused.disable_adapter(), model.disable_adapter(), torch.no_grad():
        tokens = torch.arange(3, 30)[None]
        torch.testing.assert_close(fused(input_ids=tokens).logits, model(input_ids=tokens).logits)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        fused.merge_adapter()
        torch.testing.assert_close(fused(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-5)


def test_another_adapter_that_becomes_active_is_computed() -> None:
    model = adapted()
    fused = deepcopy(model)
    fuse_layers(fused)
    tokens = torch.arange(3, 30)[None]
    for each in (model, fused):
        each.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=True))
        each.set_adapter("other")  # an update of zero until it is trained
    with torch.no_grad():
        torch.testing.assert_close(fused(input_ids=tokens).logits, model(input_ids=tokens).logits)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_adapters_are_left_to_peft(settings: dict[str, Any]) -> None:
    assert fuse_layers(adapted(**settings))["adapters"] == 0
