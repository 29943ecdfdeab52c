# SPDX-License-Identifier: Apache-2.0
"""Preferences between answers about images: TRL's trainer equals our own, whatever the model."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.errors import DataError
from oumi.core.train import train
from tests.end_to_end.test_images import image_bytes
from tests.laws.test_trl_preference import SHARED, evaluation, with_evaluation
from tests.ranks import free_port, run_ranks
from tests.runs import records, tiny_config
from tests.tiny_vision import SAVERS

DRIVER = Path(__file__).with_name("ranks_driver.py")


def write_pairs(folder: Path) -> Path:
    """Writes pairs with one image, two images or none, by path and data URL, and returns the file."""
    rows = []
    for i in range(9):
        (folder / f"{i}.png").write_bytes(image_bytes(i, width=20 + 4 * i, height=32))
        encoded = base64.b64encode(image_bytes(100 + i)).decode()
        images: list[Any] = [f"{i}.png"]
        if i % 3 == 1:
            images.append(f"data:image/png;base64,{encoded}")
        if i % 3 == 2:
            images = [f"data:image/png;base64,{encoded}"]
        if i == 5:
            images = []
        row = {"prompt": f"What is {i}?", "images": images, "chosen": f"It is {i}." + "!" * (i % 3), "rejected": "No."}
        rows.append(json.dumps(row))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(rows))
    return path


def vision_config(folder: Path, kind: str, trainer: str, **training: Any) -> TrainingConfig:
    if not (folder / "model").exists():
        SAVERS[kind](folder / "model")
    method = "dpo" if trainer == "OUMI" else None
    settings = {"trainer_type": trainer, "method": method, "output_dir": str(folder / trainer), "num_train_epochs": 2}
    config = tiny_config(folder, **{**settings, **training})
    config.data.train.datasets[0].dataset_name = "vision_dpo_jsonl"
    config.data.train.datasets[0].dataset_path = str(write_pairs(folder))
    return config if training.get("eval_strategy") == "no" else with_evaluation(config)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_preferences_about_images_train_as_in_our_own_trainer(tmp_path: Path, kind: str, adapter: bool) -> None:
    for trainer in ("OUMI", "TRL_DPO"):
        config = vision_config(tmp_path, kind, trainer, use_peft=adapter)
        config.peft.lora_target_modules = ["q_proj", "v_proj"]
        train(config)
    for name in ("loss", "num_tokens", "num_target_tokens", *SHARED):
        expected = [step[name] for step in records(tmp_path / "OUMI")]
        actual = [step[name] for step in records(tmp_path / "TRL_DPO")]
        assert actual[:2] == pytest.approx(expected[:2], rel=1e-4, abs=2e-5), name
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-3), name
    evaluations = [evaluation(tmp_path / trainer) for trainer in ("OUMI", "TRL_DPO")]
    assert evaluations[1]["eval_loss"] == pytest.approx(evaluations[0]["eval_loss"], rel=1e-3)


def test_a_loss_without_images_refuses_their_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:\d: ORPO and CPO of TRL do not pass images on; TRL_DPO"):
        train(vision_config(tmp_path, "llava", "TRL_ORPO"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAVERS)
def test_judged_answers_about_images_are_trained(tmp_path: Path, kind: str) -> None:
    config = vision_config(tmp_path, kind, "TRL_KTO", eval_strategy="no")
    rows = []
    for i in range(9):
        image = {"type": "image_path", "content": f"{i}.png"}
        prompt = [{"role": "user", "content": [image, {"type": "text", "content": f"What is {i}?"}]}]
        answer = [{"role": "assistant", "content": f"It is {i}." if i % 2 else "No."}]
        rows.append(json.dumps({"prompt": prompt, "completion": answer, "label": bool(i % 2)}))
    (tmp_path / "judged.jsonl").write_text("\n".join(rows))
    config.data.train.datasets[0].dataset_name = "kto_jsonl"
    config.data.train.datasets[0].dataset_path = str(tmp_path / "judged.jsonl")
    config.data.validation.datasets = []
    train(config)
    steps = records(tmp_path / "TRL_KTO")
    assert (steps[0]["loss"], steps[0]["kl"]) == (0.5, 0.0)  # the model is its own reference
    assert [step["rewards/margins"] for step in steps if "rewards/margins" in step][-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAVERS)
def test_two_ranks_equal_one(tmp_path: Path, kind: str) -> None:
    settings = {"per_device_train_batch_size": 1, "eval_strategy": "no"}
    train(vision_config(tmp_path, kind, "TRL_DPO", gradient_accumulation_steps=4, **settings))
    out = str(tmp_path / "two")
    config = vision_config(tmp_path, kind, "TRL_DPO", gradient_accumulation_steps=2, output_dir=out, **settings)
    config.to_yaml(tmp_path / "ranks.yaml")
    ranks = run_ranks(2, str(DRIVER), f"{free_port()}:{tmp_path / 'ranks.yaml'}", folder=DRIVER.parents[2])
    assert [code for code, _ in ranks] == [0, 0], ranks
    for name in ("loss", "num_tokens", *SHARED):
        expected = [step[name] for step in records(tmp_path / "TRL_DPO")]
        assert [step[name] for step in records(tmp_path / "two")] == pytest.approx(expected, rel=1e-4, abs=2e-5), name
