# SPDX-License-Identifier: Apache-2.0
"""Parts built from sections of a config, as notebooks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.builders import (
    build_chat_template,
    build_lr_scheduler,
    build_model,
    build_optimizer,
    build_peft_model,
    build_tokenizer,
)
from oumi.core.configs import ModelParams, PeftParams, TrainingParams
from tests.tiny import CHATML, save_tiny_model


@pytest.fixture
def model_params(tmp_path: Path) -> ModelParams:
    return ModelParams(model_name=str(save_tiny_model(tmp_path / "model")), model_max_length=128)


def trained(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_a_model_and_its_tokenizer_are_built(model_params: ModelParams) -> None:
    tokenizer, model = build_tokenizer(model_params), build_model(model_params)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.model_max_length == 128
    logits = model(**tokenizer(text, return_tensors="pt")).logits
    assert logits.shape[-1] == 260


def test_a_named_template_takes_the_place_of_the_tokenizers(model_params: ModelParams) -> None:
    model_params.chat_template = "llama3-instruct"
    assert build_tokenizer(model_params).chat_template == build_chat_template("llama3-instruct") != CHATML


@pytest.mark.parametrize("at_once", [True, False])
def test_an_adapter_is_all_that_is_trained(model_params: ModelParams, at_once: bool) -> None:
    peft = PeftParams(lora_target_modules=["q_proj", "v_proj"])
    model = build_model(model_params, peft) if at_once else build_peft_model(build_model(model_params), True, peft)
    assert len(trained(model)) == 8
    assert all("lora" in name for name in trained(model))
    assert model.peft_config["default"].base_model_name_or_path == model_params.model_name


def test_an_optimizer_and_its_schedule_move_together(model_params: ModelParams) -> None:
    params = TrainingParams(learning_rate=0.5, optimizer="sgd", lr_scheduler_type="linear", warmup_steps=2)
    optimizer = build_optimizer(build_model(model_params), params)
    schedule = build_lr_scheduler(optimizer, params, num_training_steps=4)
    assert isinstance(optimizer, torch.optim.SGD)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.25, 0.5, 0.25]


def test_a_model_is_built_with_the_adapter_that_it_names(model_params: ModelParams, tmp_path: Path) -> None:
    peft = PeftParams(lora_target_modules=["q_proj"], lora_r=3)
    build_model(model_params, peft).save_pretrained(tmp_path / "adapter")
    model_params.adapter_model = str(tmp_path / "adapter")
    assert build_model(model_params).peft_config["default"].r == 3


def test_an_adapter_is_the_same_by_every_way(model_params: ModelParams) -> None:
    peft = PeftParams(lora_target_modules=["q_proj", "v_proj"], lora_exclude_modules=["model.layers.0.*"], lora_r=3)
    built = build_model(model_params, peft).peft_config["default"]
    described = peft.to_lora()
    for name in (
        "r",
        "lora_alpha",
        "exclude_modules",
        "target_modules",
        "modules_to_save",
        "bias",
        "init_lora_weights",
    ):
        assert getattr(built, name) == getattr(described, name), name
