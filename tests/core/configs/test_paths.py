# SPDX-License-Identifier: Apache-2.0
"""`~` is the home directory in every key that may be a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import keys_of
from oumi.core.configs.paths import with_home
from oumi.core.errors import ConfigError
from oumi.core.plan.trainer_kwargs import as_run
from oumi.core.train import train
from tests.runs import losses, tiny_config

KEYS = {
    "model.model_name", "model.adapter_model", "model.tokenizer_name", "training.output_dir", "training.logging_dir",
    "training.resume_from_checkpoint", "training.telemetry.telemetry_dir", "training.profiler.save_dir",
    "training.gkd.teacher_model_name_or_path", "training.gold.teacher_model_name_or_path",
    "training.gold.teacher_tokenizer_name_or_path", "deepspeed.deepspeed_config_path",
}  # fmt: skip
ELSEWHERE = {f"data.{split}.datasets[].dataset_path" for split in ("train", "validation", "test")}
"""Keys whose value is expanded where it is read, since the digest of a run's rows holds it as written."""
NO_PATHS = ("run_name", "collator_name", "dataset_name", "training.try_resume_from_last_checkpoint")


def config_of(*arguments: str) -> TrainingConfig:
    data = "data.train.datasets=[{dataset_name: text_sft}]"
    return TrainingConfig.from_yaml_and_arg_list(None, ["model.model_name=m", data, *arguments])


def value_at(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_path_key_knows_the_home(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-user")
    config = config_of(f"{key}=~/x")
    run = as_run(config)
    assert value_at(run, key) == "/home/of-a-user/x"
    assert value_at(config, key) == "~/x"
    assert run.origin_of(key) == config.origin_of(key)


def test_every_key_named_as_a_path_is_one() -> None:
    names = ("_dir", "_path", "_file", "_name", "_checkpoint", "adapter_model")
    keys = {key for key, _ in keys_of(TrainingConfig) if key.endswith(names) and not key.endswith(NO_PATHS)}
    assert keys == KEYS | ELSEWHERE


def test_a_home_that_does_not_exist_is_reported_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("model.model_name=~nobody-here/m")
    with pytest.raises(ConfigError, match=r"model\.model_name: got '~nobody-here/m', but there is no home"):
        with_home(config)


def test_a_run_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(tmp_path, max_steps=2, enable_tensorboard=True, logging_dir="~/boards", output_dir="~/out")
    config.model.model_name = config.model.tokenizer_name = "~/model"
    config.data.train.datasets[0].dataset_path = "~/chats.jsonl"
    train(config)
    assert len(losses(tmp_path / "out")) == 2
    assert [*(tmp_path / "boards").iterdir()]
    assert json.loads((tmp_path / "out" / "plan.json").read_text())
    assert not Path("~").exists()
