# SPDX-License-Identifier: Apache-2.0
"""The bytes that layers keep for the backward pass are those that torch saves, whatever is trained of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch

from oumi.core.batch import Batch
from oumi.core.configs import PeftParams
from oumi.core.models.shared_prefixes import without_ends
from oumi.core.plan.division import divide
from oumi.core.plan.step_sizes import LargestMicroBatch, StepSizes
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, tiny_config
from tests.tiny import save_tiny_model

ALL, ATTENTION = {"lora_target_modules": ["all-linear"]}, {"lora_target_modules": ["q_proj", "v_proj", "o_proj"]}
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "all weights": None,
    "every layer": {**ALL, "lora_r": 32},
    "attention": {**ATTENTION, "lora_r": 4},
    "DoRA of every layer": {**ALL, "lora_use_dora": True},
    "DoRA of attention": {**ATTENTION, "lora_use_dora": True},
    "dropout": {**ALL, "lora_dropout": 0.1},
    "dropout in attention": {**ATTENTION, "lora_dropout": 0.1},
    "DoRA with dropout": {**ALL, "lora_use_dora": True, "lora_dropout": 0.1},
}
SHAPE = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4}


class Kept:
    """A tensor that torch keeps for a backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_bytes(model: torch.nn.Module, batch: Batch) -> int:
    """Returns the bytes that a backward pass will read of a batch, each memory once, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: WeakSet[Kept] = WeakSet()  # those of a part whose gradient nothing needs are gone after the pass

    def keep(tensor: torch.Tensor) -> Kept:
        kept.add(entry := Kept(tensor))
        return entry

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda entry: entry.tensor):
        prediction = model(batch)
    storages = [entry.tensor.untyped_storage() for entry in kept]
    assert prediction.states.requires_grad
    return sum({part.data_ptr(): part.nbytes() for part in storages if part.data_ptr() not in weights}.values())


@pytest.mark.sample(8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_layers_keep_what_torch_saves(tmp_path: Path, adapter: str, dtype: str) -> None:
    peft = ADAPTERS[adapter]
    save_tiny_model(tmp_path / "model", **SHAPE)
    config = tiny_config(tmp_path, use_peft=peft is not None, gradient_accumulation_steps=1)
    config.model.torch_dtype_str = dtype
    config.peft = PeftParams(**(peft or {}))
    run = build(config, NativeTrainer).run
    (batch, *_) = next(run.loader.from_step(0))
    num_bytes = kept_bytes(run.model, batch)
    tokens = len(without_ends(batch).tokens)
    division = divide(run.plan)
    assert run.plan.shape is not None
    assert division is not None
    sizes = StepSizes(run.plan, run.plan.shape, division, LargestMicroBatch(tokens, tokens), True)
    # What the head reads comes on top; the first layer keeps less, since no gradient goes below an adapter.
    expected = sizes.layers_bytes - tokens * run.plan.shape.hidden * sizes.number
    assert num_bytes == pytest.approx(expected, rel=0.05)
