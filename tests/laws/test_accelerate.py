# SPDX-License-Identifier: Apache-2.0
"""Models that Accelerate divides train to the losses of one process, and are saved whole."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.end_to_end.test_images import config_of as vision_config
from tests.laws.test_ranks import assert_close
from tests.laws.test_trl_preference import preference_config
from tests.ranks import free_port, run_ranks
from tests.runs import records, tiny_config

DRIVER = Path(__file__).with_name("accelerate_driver.py")
LORA = {"use_peft": True, "enable_gradient_checkpointing": True}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "whole files": (2, {"trainer_type": "TRL_SFT"}, {}, {}),
    "parts": (2, {"trainer_type": "HF", "enable_gradient_checkpointing": True},
              {"state_dict_type": "SHARDED_STATE_DICT", "sharding_strategy": "SHARD_GRAD_OP"}, {}),
    "copies": (4, {"trainer_type": "TRL_SFT"}, {"sharding_strategy": "HYBRID_SHARD"}, {}),
    "adapter": (2, {"trainer_type": "TRL_SFT", **LORA}, {"transformer_layer_cls": "LlamaDecoderLayer"}, {}),
    "merged": (2, {"trainer_type": "HF", **LORA}, {}, {"peft_save_mode": "MERGED"}),
    "packed": (2, {"trainer_type": "TRL_SFT", "enable_gradient_checkpointing": True}, {}, {}),
    "images": (2, {"trainer_type": "HF"}, {}, {}),
    "pairs": (2, {"trainer_type": "TRL_DPO"}, {}, {}),
    "pairs adapter": (2, {"trainer_type": "TRL_DPO", **LORA}, {}, {}),
    "pairs ranks": (2, {"trainer_type": "TRL_CPO"}, {}, {}),
    "judged": (2, {"trainer_type": "TRL_KTO", "trainer_kwargs": {"loss_type": "apo_zero_unpaired"}}, {}, {}),
    "zero 2": (2, {"trainer_type": "HF"}, {"zero_stage": "ZERO_2"}, {}),
    "zero 3": (2, {"trainer_type": "TRL_SFT"}, {"zero_stage": "ZERO_3"}, {}),
    "zero 3 merged": (2, {"trainer_type": "TRL_SFT", **LORA}, {"zero_stage": "ZERO_3"}, {"peft_save_mode": "MERGED"}),
}  # fmt: skip
"""Ranks, `training`, `fsdp` or `deepspeed`, `peft`."""


def with_package(name: str) -> Any:
    needs = [pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed")]
    return pytest.param(name, marks=needs if name.startswith("zero") else [])


def configured(folder: Path, name: str, **training: Any) -> TrainingConfig:
    _, of_case, _, peft = CASES[name]
    values = {
        "per_device_train_batch_size": 1, "max_steps": 6, "save_steps": 3, "save_final_model": True, **of_case,
        **training,
    }  # fmt: skip
    config = vision_config(folder, "qwen2_vl", **values) if name == "images" else tiny_config(folder, 27, **values)
    if name == "packed":
        config.model.model_max_length, config.data.train.pack = 160, True
    config.peft.lora_target_modules = ["q_proj", "v_proj"]
    for key, value in peft.items():
        setattr(config.peft, key, value)
    config.training.eval_strategy = "steps"
    config.training.eval_steps = 5
    if config.training.trainer_type.spec.method != "next_token":
        of_preferences = preference_config(folder, config.training.trainer_type.name)
        config.data.train.datasets = of_preferences.data.train.datasets
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


def train_on_ranks(folder: Path, name: str, **training: Any) -> None:
    num_ranks, _, values, _ = CASES[name]
    accumulation = 4 // num_ranks
    out = str(folder / "divided")
    config = configured(folder, name, gradient_accumulation_steps=accumulation, output_dir=out, **training)
    section = "deepspeed" if name.startswith("zero") else "fsdp"
    for key, value in {f"enable_{section}": True, **values}.items():
        setattr(getattr(config, section), key, value)
    config.to_yaml(folder / "divided.yaml")
    ranks = run_ranks(
        num_ranks, str(DRIVER), f"{free_port()}:{folder / 'divided.yaml'}", folder=Path(__file__).parents[2]
    )
    assert [code for code, _ in ranks] == [0] * num_ranks, ranks


@pytest.mark.slow
@pytest.mark.parametrize("name", [with_package(name) for name in CASES])
def test_a_divided_model_equals_a_whole_one(tmp_path: Path, name: str) -> None:
    train(configured(tmp_path, name, gradient_accumulation_steps=4))
    train_on_ranks(tmp_path, name)
    whole, divided = tmp_path / "out", tmp_path / "divided"
    for key in ("loss", "grad_norm", "num_tokens"):
        expected = [step[key] for step in records(whole)]
        assert [step[key] for step in records(divided)] == pytest.approx(expected, rel=1e-5), key
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert len(files) >= 3
    for file in files:
        assert_close(load_file(divided / file), load_file(whole / file))


@pytest.mark.slow
@pytest.mark.parametrize("name", [with_package(name) for name in ("whole files", "parts", "pairs", "zero 3")])
def test_a_divided_run_goes_on_where_it_was_stopped(tmp_path: Path, name: str) -> None:
    train_on_ranks(tmp_path, name)
    out = tmp_path / "divided"
    losses, model = [step["loss"] for step in records(out)], AutoModelForCausalLM.from_pretrained(out).state_dict()
    shutil.rmtree(out / "checkpoint-6")
    (out / "model.safetensors").unlink()
    train_on_ranks(tmp_path, name, try_resume_from_last_checkpoint=True)
    assert [step["loss"] for step in records(out)] == losses
    resumed = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(resumed[key], weight) for key, weight in model.items())
