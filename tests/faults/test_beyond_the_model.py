# SPDX-License-Identifier: Apache-2.0
"""Tokens without an embedding and positions beyond a learned table never reach the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPTJConfig, LlamaConfig, OPTConfig

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError, DataError
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from tests.runs import losses, tiny_config
from tests.tiny import byte_tokenizer


def config_of(folder: Path, answers: list[str], **split: Any) -> TrainingConfig:
    """Returns a run of a model whose tokenizer has one token more, `<|new|>`, on a chat for each answer."""
    config = tiny_config(folder, max_steps=3, num_train_epochs=1, gradient_accumulation_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "model")
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]} for answer in answers
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config.data.train = type(config.data.train).model_validate({**config.data.train.model_dump(), **split})
    return config


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_known_tokens_are_trained_with_a_longer_tokenizer(tmp_path: Path, stream: bool) -> None:
    train(config_of(tmp_path, ["a", "b", "c"], stream=stream))
    assert len(losses(tmp_path / "out")) == 3


def test_a_token_without_an_embedding_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token \d+ \('<\|new\|>'\) of the rows has no embedding"):
        train(config_of(tmp_path, ["a", "<|new|> b", "c"]))


@pytest.mark.parametrize("pack", [False, True])
def test_a_row_of_a_stream_with_a_token_without_an_embedding_is_rejected(tmp_path: Path, pack: bool) -> None:
    answers = ["a", "b", "<|new|> c", "d"]
    with pytest.raises(DataError, match=r"chats\.jsonl:3: a token has no embedding: \d+, the model has \d+ embeddings"):
        train(config_of(tmp_path, answers, stream=True, pack=pack))
    train(config_of(tmp_path, answers, stream=True, pack=pack, max_rejected_rows=1))
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"][0]
    assert report["rows"]["rejected"] == 1


SIZES = {"vocab_size": len(byte_tokenizer()), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
FAMILIES: dict[str, tuple[Any, str]] = {
    "gpt2": (GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, **SIZES), "transformer.wpe"),
    "opt": (
        OPTConfig(
            hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, **SIZES,
        ),
        "model.decoder.embed_positions",
    ),
    "gptj": (
        GPTJConfig(n_embd=32, n_layer=1, n_head=2, n_positions=32, rotary_dim=8, **SIZES),
        "transformer.rotary_emb.embed_positions",
    ),
    "llama": (
        LlamaConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, **SIZES,
        ),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_longer_than_a_table_of_positions_are_refused(tmp_path: Path, family: str) -> None:
    model_config, table = FAMILIES[family]
    AutoModelForCausalLM.from_config(model_config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = tiny_config(tmp_path, max_steps=1)
    for length in (None, 32, 33, 64):
        config.model.model_max_length = length
        plan = make_plan(config, gather_facts(config))
        if length is not None and length > 32 and table:
            message = f"rows may have {length} tokens, but the model has 32 positions \\({table}\\)"
            with pytest.raises(ConfigError, match=message):
                build_model(plan, torch.device("cpu"))
        else:
            assert plan.model.max_length == (length or 32)
            model = build_model(plan, torch.device("cpu"))
            with torch.no_grad():
                model(input_ids=torch.zeros(1, plan.model.max_length, dtype=torch.long))
