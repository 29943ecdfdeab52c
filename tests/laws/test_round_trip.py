# SPDX-License-Identifier: Apache-2.0
"""Law 5: saved = loaded by plain transformers, and base + adapter = merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, tiny_config


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_a_saved_model_loads_with_plain_transformers_and_generates(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(tmp_path, max_steps=5, trainer_type=trainer, save_steps=5)
    train(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert model.generate(ids, max_new_tokens=5, do_sample=False).shape[1] > ids.shape[1]
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-5")
    assert torch.equal(model(ids).logits, checkpoint(ids).logits)


def test_a_saved_model_gives_the_logits_of_the_trained_one(tmp_path: Path) -> None:
    trainer = build(tiny_config(tmp_path, max_steps=5), NativeTrainer)
    trainer.train()
    trainer.save(tmp_path / "out")
    ids = torch.arange(4, 40)[None]
    trained = trainer.run.model.eval().inner
    trained.set_attn_implementation("sdpa")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").to(trained.device)
    ids = ids.to(trained.device)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())
    torch.testing.assert_close(trained(ids).logits, loaded(ids).logits, rtol=1e-5, atol=1e-6)  # fused, and plain


def test_base_and_adapter_equal_the_merged_model(tmp_path: Path) -> None:
    shape = {"use_peft": True, "max_steps": 8, "learning_rate": 1e-2}
    train(tiny_config(tmp_path, **shape))
    merged = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "merged"))
    merged.peft.peft_save_mode = "merged"
    train(merged)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(4, 40)[None]
    untrained = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "out").eval()(ids).logits
    assert not torch.allclose(adapted, untrained, atol=1e-3)
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.allclose(adapted, logits, atol=1e-5)
    assert (tmp_path / "merged" / "adapter" / "adapter_config.json").is_file()
