# SPDX-License-Identifier: Apache-2.0
"""New tokens begin as means, are trained, and are there again when the model is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.load import load_model
from oumi.core.plan.plan import make_plan
from oumi.core.results.chat_model import load_chat_model
from oumi.core.results.merge import merge
from oumi.core.train import train
from tests.runs import losses, tiny_config
from tests.tiny import save_tiny_model, tiny_llama

TOKENS = ["<think>", "</think>"]
IDS = torch.tensor([[5, 260, 9, 261, 30, 31]])


def config_of(folder: Path, is_tied: bool = True, **training: Any) -> Any:
    save_tiny_model(folder / "model", tie_word_embeddings=is_tied)
    pairs = [(f"{i}?", f"<think>{i}</think>{i + 1}") for i in range(16)]
    roles = ("user", "assistant")
    rows = [{"messages": [{"role": r, "content": t} for r, t in zip(roles, pair, strict=True)]} for pair in pairs]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(folder, **{"max_steps": 4, "learning_rate": 1e-2, **training})
    config.model.tokenizer_kwargs = {"extra_special_tokens": TOKENS}
    return config


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.sample(6)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT", "HF"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("use_peft", [False, True])
def test_new_tokens_are_trained_saved_and_loaded(tmp_path: Path, trainer: str, is_tied: bool, use_peft: bool) -> None:
    train(config_of(tmp_path, is_tied, trainer_type=trainer, use_peft=use_peft))
    out = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids(TOKENS) == [260, 261]
    model: Any = AutoModelForCausalLM.from_pretrained(out) if not use_peft else None
    if use_peft:
        model = AutoPeftModelForCausalLM.from_pretrained(out)
        expected = logits(model)
        merge(str(out), tmp_path / "merged")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert len(table.weight) == 262
        assert all((row - before.mean(0)).abs().max() > 1e-4 for row in table.weight[260:])
    is_only = use_peft and trainer != "TRL_SFT"
    assert torch.equal(model.get_input_embeddings().weight[:260], before) == is_only
    assert load_chat_model(out).model.get_input_embeddings().weight.shape[0] == 262


def test_a_new_token_begins_as_the_mean_and_keeps_the_other_logits(tmp_path: Path) -> None:
    for is_tied in (True, False):
        (tmp_path / str(is_tied)).mkdir()
        config = config_of(tmp_path / str(is_tied), is_tied)
        plan = make_plan(config, gather_facts(config)).model
        model = load_model(replace(plan, added_tokens=(260, 261)), torch.device("cpu"))
        before = tiny_llama(tie_word_embeddings=is_tied)
        for table, old in ((model.get_input_embeddings(), before.get_input_embeddings()),
                           (model.get_output_embeddings(), before.get_output_embeddings())):  # fmt: skip
            torch.testing.assert_close(table.weight[260:], old.weight.mean(0).expand(2, -1))
        ids = torch.tensor([[5, 9, 30]])
        torch.testing.assert_close(model(ids).logits[..., :260], before(ids).logits)


@pytest.mark.sample(2)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
@pytest.mark.parametrize("use_peft", [False, True])
def test_a_run_with_new_tokens_is_resumed_bitwise(tmp_path: Path, trainer: str, use_peft: bool) -> None:
    shape = {"trainer_type": trainer, "use_peft": use_peft, "lr_scheduler_type": "constant", "save_steps": 2}
    train(config_of(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    train(config_of(tmp_path, **shape, output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint))
    name = "adapter_model.safetensors" if use_peft else "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[2:]


def test_an_adapter_with_new_tokens_is_trained_further(tmp_path: Path) -> None:
    train(config_of(tmp_path, use_peft=True))
    config = config_of(tmp_path, output_dir=str(tmp_path / "further"))
    config.model.model_name, config.model.tokenizer_kwargs = str(tmp_path / "out"), {}
    train(config)
    assert losses(tmp_path / "further")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.parametrize("is_tied", [True, False])
def test_new_tokens_are_rows_of_tables_that_are_trained_as_a_whole(tmp_path: Path, is_tied: bool) -> None:
    config = config_of(tmp_path, is_tied, use_peft=True)
    config.peft.lora_modules_to_save = ["embed_tokens"]
    train(config)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert all((row - before.mean(0)).abs().max() > 1e-4 for row in table.weight[260:])
        assert not torch.equal(table.weight[:260], before)


def test_an_adapter_on_the_table_of_new_tokens_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, use_peft=True)
    config.peft.lora_target_modules = ["q_proj", "embed_tokens"]
    with pytest.raises(ConfigError, match=r"peft.lora_target_modules: new tokens need rows of their own in model.emb"):
        train(config)


def test_a_pad_token_that_is_new_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.model.tokenizer_kwargs, config.model.tokenizer_pad_token = {}, "<new>"
    with pytest.raises(ConfigError, match=r"has no '<new>', so it would be a new token; to add it, set model.tokeni"):
        train(config)
    config.model.tokenizer_kwargs, config.model.tokenizer_pad_token = {"pad_token": "<new>"}, None
    train(config)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "<new>"
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight) == 261
