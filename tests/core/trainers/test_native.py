# SPDX-License-Identifier: Apache-2.0
"""Our own trainer takes models of other kinds than most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer


# Without attention, with its own positions, with experts, with LayerNorm and Conv1D.
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        (
            "mixtral",
            {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_local_experts": 4,
            },
        ),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_a_model_of_another_kind_is_trained(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    ids = {"vocab_size": 260, "pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **ids, **settings))
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    train(tiny_config(tmp_path, max_steps=12, learning_rate=1e-2))
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    assert steps[-1]["fraction_of_peak"] > 0
