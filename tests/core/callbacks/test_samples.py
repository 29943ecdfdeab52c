# SPDX-License-Identifier: Apache-2.0
"""Answers to validation rows during a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.refusals import check
from oumi.core.results.chat_model import answer, load_chat_model
from oumi.core.train import train
from tests.runs import losses, tiny_config, weights
from tests.tiny import write_pairs


def config_of(folder: Path, **training: Any) -> TrainingConfig:
    evaluates = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-2}
    config = tiny_config(folder, **{**evaluates, **training})
    config.data.validation.datasets = list(config.data.train.datasets)
    return config


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT", "HF"])
def test_samples_are_the_answers_of_the_model_and_change_no_number(tmp_path: Path, trainer: str) -> None:
    settings: dict[str, Any] = {"trainer_type": trainer, "save_steps": 2}
    if trainer != "OUMI":
        settings["gradient_accumulation_steps"] = 1
    plain, sampled = tmp_path / "plain", tmp_path / "sampled"
    for out, count in ((plain, 0), (sampled, 3)):
        config = config_of(tmp_path, output_dir=str(out), eval_samples=count, enable_tensorboard=count > 0, **settings)
        config.model.model_kwargs = {"attention_dropout": 0.1}  # so that the random generators matter
        config.data.train.train_target = config.data.train.train_target or "ALL_ASSISTANT_TURNS"  # type: ignore[assignment]
        train(config)
    assert losses(plain) == losses(sampled)
    assert all(tensor.equal(weights(sampled)[name]) for name, tensor in weights(plain).items())
    assert not (plain / "samples.jsonl").exists()
    written = samples(sampled)
    assert [row["step"] for row in written] == [2, 2, 2, 4, 4, 4]
    assert [row["source"] for row in written[:3]] == [f"{tmp_path / 'chats.jsonl'}:{i}" for i in (1, 2, 3)]
    rows = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").read_text().splitlines()[:3]]
    assert [row["reference"].strip() for row in written[:3]] == [turns[-1]["content"] for turns in rows]
    for step in (2, 4):
        model = load_chat_model(sampled / f"checkpoint-{step}")
        expected = answer(model, [turns[:-1] for turns in rows], 128)
        assert [row["answer"] for row in written if row["step"] == step] == expected
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(sampled / "tensorboard"))
    events.Reload()
    assert "samples/0/text_summary" in events.Tags()["tensors"]


def test_a_resumed_run_keeps_answers_with_any_sign(tmp_path: Path) -> None:
    config = config_of(tmp_path, eval_samples=1, save_steps=2, try_resume_from_last_checkpoint=True)
    train(config)
    path = tmp_path / "out" / "samples.jsonl"
    first, second = samples(tmp_path / "out")
    first["answer"] = "a\u2028b\x85c"  # as text, these would end a line
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (first, second)), encoding="utf-8")
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / "run.json").unlink()
    train(config)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [first, second]


def test_pairs_and_adapters_are_answered_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, method="dpo", use_peft=True, eval_samples=2)
    for split in (config.data.train, config.data.validation):
        split.datasets[0].dataset_path = str(write_pairs(tmp_path / "pairs.jsonl", 8))
    train(config)
    written = samples(tmp_path / "out")
    assert len(written) == 4
    assert written[0]["reference"].strip() == "It is 0."
    assert written[0]["prompt"].endswith("<|im_start|>assistant\n")


def test_packed_rows_of_another_trainer_are_answered_one_by_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, trainer_type="TRL_SFT", eval_samples=2, save_steps=4)
    config.data.train.train_target = "ALL_ASSISTANT_TURNS"  # type: ignore[assignment]
    config.data.train.pack = config.data.validation.pack = True
    config.model.model_max_length = 256
    train(config)
    first = json.loads((tmp_path / "chats.jsonl").read_text().splitlines()[0])["messages"]
    model = load_chat_model(tmp_path / "out" / "checkpoint-4")
    assert samples(tmp_path / "out")[2]["answer"] == answer(model, [first[:-1]], 128)[0]


def test_a_resumed_run_has_each_sample_once(tmp_path: Path) -> None:
    config = config_of(tmp_path, eval_samples=1, save_steps=2, try_resume_from_last_checkpoint=True, max_steps=6)
    train(config)
    whole = samples(tmp_path / "out")
    import shutil

    for name in ("checkpoint-6", "checkpoint-4"):
        shutil.rmtree(tmp_path / "out" / name)
    (tmp_path / "out" / "run.json").unlink()
    train(config)
    assert samples(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"eval_strategy": "no"}, "eval_samples: needs evaluations"),
        ({"compile": True}, r"eval_samples: not supported with training\.compile"),
    ],
)
def test_samples_that_cannot_be_made_are_refused(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config_of(tmp_path, eval_samples=1, **training))
