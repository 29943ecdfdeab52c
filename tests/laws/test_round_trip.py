# SPDX-License-Identifier: Apache-2.0
"""Law 5: saved = loaded by plain transformers, and base + adapter = merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi.core.errors import ConfigError
from oumi.core.models.adapters import below_adapter
from oumi.core.plan.refusals import check
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.trl import TrlTrainer
from tests.runs import build, tiny_config
from tests.tiny import save_tiny_model

IDS = torch.arange(4, 40)[None]
TRAINED: dict[str, dict[str, Any] | None] = {
    "all weights": None,
    "attention": {"lora_target_modules": ["q_proj"]},
    "embedding": {"lora_target_modules": ["q_proj", "embed_tokens"]},
    "head": {"lora_target_modules": ["q_proj", "lm_head"]},
    "embedding and head": {"lora_target_modules": ["embed_tokens", "lm_head"]},
    "whole embedding": {"lora_modules_to_save": ["embed_tokens"]},
    "whole head": {"lora_modules_to_save": ["lm_head"]},
    "whole embedding and head": {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding, whole head": {"lora_target_modules": ["embed_tokens"], "lora_modules_to_save": ["lm_head"]},
    "norms": {"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["norm"]},
    "DoRA": {"lora_target_modules": ["all-linear"], "lora_use_dora": True},
    "rsLoRA": {"lora_target_modules": ["q_proj", "down_proj"], "lora_use_rslora": True},
    "PiSSA": {"lora_target_modules": ["all-linear"], "lora_init_weights": "PISA"},
    "fast PiSSA": {"lora_target_modules": ["v_proj"], "lora_init_weights": "pissa_niter_4", "lora_use_rslora": True},
    "OLoRA": {"lora_target_modules": ["q_proj"], "lora_init_weights": "OLORA", "lora_modules_to_save": ["norm"]},
    "EVA": {"lora_target_modules": ["all-linear"], "lora_init_weights": "EVA"},
    "orthogonal": {"lora_target_modules": ["q_proj"], "lora_init_weights": "ORTHOGONAL"},
    "tokens": {"lora_target_modules": ["q_proj"], "lora_trainable_token_indices": [5, 40, 41]},
    "biases": {"lora_target_modules": ["q_proj"], "lora_bias": "all"},
}
"""Arguments of the adapter, by what is trained."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS.to(model.device)).logits.cpu()
    return result


@pytest.mark.sample(10)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT", "HF"])
@pytest.mark.parametrize("mode", ["ADAPTER_ONLY", "ADAPTER_AND_BASE_MODEL", "MERGED"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_exported_gives_the_logits_of_the_model_in_memory_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, mode: str, is_tied: bool, trained: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the names of model and output are relative
    save_tiny_model(Path("run/model"), tie_word_embeddings=is_tied, attention_bias=trained == "biases")
    before = logits(AutoModelForCausalLM.from_pretrained("run/model"))
    adapter = TRAINED[trained]
    config = tiny_config(
        Path("run"), trainer_type=trainer, max_steps=3, learning_rate=1e-2, use_peft=adapter is not None
    )
    for key, value in {**(adapter or {}), "peft_save_mode": mode}.items():
        setattr(config.peft, key, value)
    kind = NativeTrainer if trainer == "OUMI" else TrlTrainer
    if trainer == "TRL_SFT" and "lm_head" in (adapter or {}).get("lora_target_modules", []):
        with pytest.raises(ConfigError, match="Applying a PEFT adapter to `lm_head` is not supported"):
            build(config, kind)
        return
    if trainer == "TRL_SFT" and is_tied and trained == "tokens":
        with pytest.raises(ConfigError, match=r"peft.lora_trainable_token_indices: the head .* use trainer OUMI"):
            build(config, kind)
        return
    if trained == "biases" and mode == "ADAPTER_AND_BASE_MODEL":
        with pytest.raises(ConfigError, match=r"peft.peft_save_mode: .*MERGED"):
            check(config)
        return
    built = build(config, kind)
    built.train()
    in_memory = built.run.model.inner if isinstance(built, NativeTrainer) else built.inner.model
    below_adapter(in_memory).set_attn_implementation("sdpa")
    expected = logits(in_memory)
    assert (expected - before).abs().max() > 1e-3
    built.save(Path("run/out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "run" / "out"
    exported = {}
    if adapter is None:
        exported["model"] = AutoModelForCausalLM.from_pretrained(out)
    else:
        folder = out / "adapter" if mode == "MERGED" else out
        exported["adapter"] = AutoPeftModelForCausalLM.from_pretrained(folder)
        if mode == "MERGED":
            exported["merged"] = AutoModelForCausalLM.from_pretrained(out)
        if mode == "ADAPTER_AND_BASE_MODEL":
            base = AutoModelForCausalLM.from_pretrained(out / "base")
            torch.testing.assert_close(logits(base), before)
            exported["adapter on base"] = PeftModel.from_pretrained(base, out)
    for name, model in exported.items():
        assert torch.allclose(logits(model), expected, rtol=1e-4, atol=1e-5), name


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
