# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are gathered one at a time."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.models.sharded import blocks_of
from oumi.core.plan.sharding import ShardingPlan

PLAN = ShardingPlan(
    num_shards=2,
    num_replicas=1,
    frees_after_forward=True,
    block_classes=(),
    min_block_weights=None,
    offload=False,
    compute_dtype=None,
    gathers_ahead_in_forward=False,
    gathers_ahead_in_backward=True,
    saves_whole_model=True,
)
SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "num_blocks"),
    [
        ("llama", 2),
        ("biogpt", 2),  # names none
        ("ctrl", 0),
    ],
)
def test_layers_are_gathered_one_at_a_time(caplog: pytest.LogCaptureFixture, model_type: str, num_blocks: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES))
    with caplog.at_level(logging.WARNING, "oumi"):
        assert len(blocks_of(model, PLAN)) == num_blocks
    assert ("fsdp.transformer_layer_cls" in caplog.text) == (num_blocks == 0)
