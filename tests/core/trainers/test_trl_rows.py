# SPDX-License-Identifier: Apache-2.0
"""Images, packed rows and streams under the trainers of TRL and transformers train as under our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.end_to_end.test_images import config_of as image_config
from tests.runs import losses, records, tiny_config
from tests.tiny_vision import SAVERS

OTHERS = ["TRL_SFT", "HF"]
ANSWERS = "ALL_ASSISTANT_TURNS"


def compare(config: TrainingConfig, folder: Path, trainer: str) -> None:
    """Trains a run by our own trainer and by another one, and compares losses, norms of gradients and counts."""
    for name in ("OUMI", trainer):
        run = config.model_copy(deep=True)
        run.training.trainer_type = type(run.training.trainer_type)[name]
        run.training.output_dir = str(folder / name)
        train(run)
    ours, theirs = records(folder / "OUMI"), records(folder / trainer)
    for key in ("num_tokens", "num_target_tokens"):
        assert [step[key] for step in theirs] == [step[key] for step in ours], key
    assert theirs[0]["loss"] == pytest.approx(ours[0]["loss"], rel=1e-5)
    for key in ("loss", "grad_norm"):
        assert [step[key] for step in theirs] == pytest.approx([step[key] for step in ours], rel=1e-3), key


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("trainer", OTHERS)
def test_images_train_as_in_our_own_trainer(tmp_path: Path, kind: str, trainer: str) -> None:
    config = image_config(tmp_path, kind, max_steps=20)
    config.data.train.train_target = ANSWERS
    compare(config, tmp_path, trainer)


def packed(folder: Path, **training: Any) -> TrainingConfig:
    config = tiny_config(folder, **training)
    config.model.model_max_length = 256
    config.data.train.pack = True
    config.data.train.train_target = ANSWERS
    return config


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", OTHERS)
def test_packed_rows_train_as_in_our_own_trainer(tmp_path: Path, trainer: str) -> None:
    compare(packed(tmp_path, num_train_epochs=4), tmp_path, trainer)


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", OTHERS)
def test_a_stream_trains_as_in_our_own_trainer_and_resumes_exactly(tmp_path: Path, trainer: str) -> None:
    config = packed(tmp_path, max_steps=9, save_steps=4)
    config.data.train.stream = True
    config.data.train.datasets[0].shuffle = True
    compare(config, tmp_path, trainer)
    whole = losses(tmp_path / trainer)
    config.training.trainer_type = type(config.training.trainer_type)[trainer]
    config.training.output_dir = str(tmp_path / "again")
    config.training.resume_from_checkpoint = str(tmp_path / trainer / "checkpoint-4")
    train(config)
    assert losses(tmp_path / "again") == whole[4:]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / trainer / "model.safetensors"
    ).read_bytes()
