# SPDX-License-Identifier: Apache-2.0
"""A step of a whole run on a GPU."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.engine.step import take_step
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, tiny_config

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip


@pytest.mark.gpu
def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    run = build(tiny_config(tmp_path, mixed_precision_dtype="BF16"), NativeTrainer).run
    run.model.train()
    steps = run.loader.from_step(0)
    for _ in range(2):  # the first ones make workspaces and the optimizer's states
        run.callbacks.step_end(run, take_step(run, next(steps)))
    micro_batches = next(steps)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.callbacks.step_end(run, take_step(run, micro_batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]
    assert len(waits) == 1, "the loss and the norm of the gradients, before any weight moves"


@pytest.mark.gpu
def test_capped_scores_train_through_steps_that_are_watched(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=4, per_device_train_batch_size=16)
    config.model.torch_dtype_str = "bfloat16"
    inner = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **SMALL, vocab_size=260))
    inner.save_pretrained(tmp_path / "model")
    train(config)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
