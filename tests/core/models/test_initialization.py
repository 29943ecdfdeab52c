# SPDX-License-Identifier: Apache-2.0
"""Adapters that begin with a part of the base weights begin with the model, and are saved for the unchanged base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.models.adapters import saved_size
from oumi.core.models.build import build_model, load_weights
from oumi.core.models.initialization import begins_with_base
from oumi.core.models.saving import ModelWriter
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from tests.runs import assert_resumed_bitwise, losses, tiny_config

KINDS = ["PISA", "pissa_niter_3", "OLORA"]
IDS = torch.arange(4, 40)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("kind", "rslora", "dtype"),
    [
        *((kind, rslora, "float32") for kind in KINDS for rslora in (False, True)),
        *((kind, False, "float64") for kind in KINDS),
    ],
)
def test_a_model_begins_as_it_was_and_a_checkpoint_restores_it_bitwise(
    tmp_path: Path, kind: str, rslora: bool, dtype: str
) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.model.torch_dtype_str = dtype
    config.peft.lora_target_modules = ["all-linear"]
    config.peft.lora_init_weights, config.peft.lora_use_rslora = kind, rslora  # type: ignore[assignment]
    plan = make_plan(config, gather_facts(config))
    model = build_model(plan, torch.device("cpu"))
    assert begins_with_base(model)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    untrained = logits(base)
    rtol, atol = (1e-4, 1e-5) if dtype == "float32" else (1e-10, 1e-10)
    torch.testing.assert_close(logits(model), untrained, rtol=rtol, atol=atol)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += 0.05 * torch.randn_like(weight)
    expected = logits(model)
    ModelWriter(model, plan.model).write(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (saved["r"], saved["init_lora_weights"]) == (16, True)
    assert saved_size(model).num_bytes == sum(w.nbytes for w in load_peft_weights(str(tmp_path / "saved")).values())
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "saved")), expected, rtol=rtol, atol=atol
    )
    again = build_model(plan, torch.device("cpu"), checkpoint=tmp_path / "saved")
    assert torch.equal(logits(again), expected)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.zero_()
    load_weights(model, plan, tmp_path / "saved")  # as after a rollback
    assert torch.equal(logits(model), expected)


def test_pissa_begins_with_the_update_that_peft_takes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft.lora_init_weights = "PISA"  # type: ignore[assignment]
    ours = build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    theirs = get_peft_model(base, LoraConfig(init_lora_weights="pissa"))
    for path, layer in theirs.named_modules():
        if hasattr(layer, "get_delta_weight"):
            ours_layer = ours.get_submodule(path)
            torch.testing.assert_close(ours_layer.get_delta_weight("default"), layer.get_delta_weight("default"))
            torch.testing.assert_close(ours_layer.base_layer.weight, layer.base_layer.weight)


@pytest.mark.parametrize("kind", ["PISA", "OLORA"])
def test_weights_that_are_stored_transposed_begin_with_the_model(tmp_path: Path, kind: str) -> None:
    shape = AutoConfig.for_model("gpt2", vocab_size=260, n_embd=32, n_layer=1, n_head=4)
    base = AutoModelForCausalLM.from_config(shape)
    config = tiny_config(tmp_path, use_peft=True)
    base.save_pretrained(tmp_path / "model")
    config.peft.lora_target_modules = ["all-linear"]
    config.peft.lora_init_weights = kind  # type: ignore[assignment]
    model = build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-5)
    ModelWriter(model, make_plan(config, gather_facts(config)).model).write(tmp_path / "saved")
    adapted = PeftModel.from_pretrained(base, tmp_path / "saved")
    torch.testing.assert_close(logits(model), logits(adapted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_a_run_is_resumed_bitwise(tmp_path: Path, trainer: str) -> None:
    def configured(output: str, **training: object) -> object:
        config = tiny_config(
            tmp_path, use_peft=True, max_steps=6, save_steps=3, trainer_type=trainer, lr_scheduler_type="constant",
            output_dir=str(tmp_path / output), **training,
        )  # fmt: skip
        config.peft.lora_init_weights = "PISA"  # type: ignore[assignment]
        return config

    train(configured("whole"))
    train(configured("again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")))
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[3:]


@pytest.mark.narrow
def test_loftq_is_nearer_to_the_weights_in_full(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=3, save_steps=2, lr_scheduler_type="constant")
    config.peft.q_lora, config.peft.bnb_4bit_quant_type = True, "nf4"
    config.peft.lora_target_modules = ["all-linear"]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected, distances = logits(base), []
    for kind in ("DEFAULT", "LOFTQ"):
        config.peft.lora_init_weights = kind  # type: ignore[assignment]
        model = build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))
        distances.append((logits(model) - expected).norm())
    assert distances[1] < 0.8 * distances[0]
    plan = make_plan(config, gather_facts(config))
    ModelWriter(model, plan.model).write(tmp_path / "saved")
    # Untrained, it is no change of the weights in full.
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "saved")), expected, rtol=1e-4, atol=1e-5
    )
    assert_resumed_bitwise(config, "checkpoint-2", "adapter_model.safetensors")


def test_a_rank_beyond_the_size_of_a_layer_is_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft.lora_init_weights, config.peft.lora_r = "PISA", 65  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"peft.lora_r: got 65, but model.layers.0.self_attn.q_proj has only 64"):
        build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))


def test_an_embedding_has_no_such_initialization(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft.lora_init_weights = "OLORA"  # type: ignore[assignment]
    config.peft.lora_target_modules = ["embed_tokens"]
    with pytest.raises(ConfigError, match=r"embed_tokens is no linear layer"):
        build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))


@pytest.mark.narrow
def test_loftq_takes_weights_that_are_stored_transposed(tmp_path: Path) -> None:
    shape = AutoConfig.for_model("gpt2", vocab_size=260, n_embd=32, n_layer=1, n_head=4)
    base = AutoModelForCausalLM.from_config(shape)
    config = tiny_config(tmp_path, use_peft=True)
    base.save_pretrained(tmp_path / "model")
    config.peft.q_lora, config.peft.lora_target_modules = True, ["c_attn", "attn.c_proj"]
    errors = {}
    for kind in ("DEFAULT", "LOFTQ"):
        config.peft.lora_init_weights = kind  # type: ignore[assignment]
        model = build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))
        errors[kind] = (logits(model) - logits(base)).norm()
    assert errors["LOFTQ"] < errors["DEFAULT"]
