# SPDX-License-Identifier: Apache-2.0
"""Layers compute their activations again where the settings say so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oumi.core.errors import ConfigError
from oumi.core.models.acceleration.checkpointing import recompute_layers
from tests.tiny import tiny_llama

TOKENS = torch.arange(12)[None]


def calls_of_layers(model: Any) -> list[int]:
    """Returns how often each MLP of the model computes in one step."""
    counts = [0, 0, 0, 0]

    def count(index: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            counts[index] += 1

        return note

    layers = [module for module in model.modules() if type(module).__name__ == "LlamaMLP"]
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(count(index))
    model.train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return counts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2, 2, 2, 2]),
        ({"recompute_num_layers": 1}, [2, 1, 1, 1]),
        ({"recompute_num_layers": 3}, [2, 2, 2, 1]),
        ({"recompute_num_layers": 9}, [2, 2, 2, 2]),
    ],
)
@pytest.mark.parametrize("has_adapter", [False, True])
def test_the_first_layers_compute_again(settings: dict[str, int], expected: list[int], has_adapter: bool) -> None:
    model = tiny_llama(num_hidden_layers=4)
    if has_adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    recompute_layers(model, {"use_reentrant": False, **settings})
    assert calls_of_layers(model) == expected


def test_a_model_that_cannot_says_so() -> None:
    model = tiny_llama()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="enable_gradient_checkpointing: llama does not support it; leave it out"):
        recompute_layers(model, {"use_reentrant": False})
