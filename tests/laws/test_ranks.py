# SPDX-License-Identifier: Apache-2.0
"""Two ranks train to the losses and weights of one, whatever the method, and their checkpoints fit any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.laws.test_preference import dpo_config
from tests.ranks import run_ranks
from tests.runs import records, tiny_config, weights


def train_on_ranks(config: TrainingConfig, folder: Path, world_size: int = 2) -> list[tuple[int, str]]:
    """Trains by the command line; returns exit code and output of each rank."""
    config.to_yaml(folder / "ranks.yaml")
    return run_ranks(world_size, "-m", "oumi", "train", "-c", str(folder / "ranks.yaml"), folder=folder)


def sft_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run on 27 chats, so that the last step of an epoch has three rows: one rank gets an empty batch."""
    config = tiny_config(folder, num_rows=27, per_device_train_batch_size=1, max_steps=10, **training)
    config.training.eval_strategy = "steps"
    config.training.eval_steps = 5
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


def pairs_config(folder: Path, **training: Any) -> TrainingConfig:
    config = dpo_config(folder, per_device_train_batch_size=1, max_steps=10, num_train_epochs=2, **training)
    config.data.train.datasets[0].sample_count = 23
    return config


@pytest.mark.parametrize("configure", [sft_config, pairs_config])
def test_two_ranks_equal_one_and_their_checkpoint_goes_on_in_one(tmp_path: Path, configure: Any) -> None:
    train(configure(tmp_path, gradient_accumulation_steps=4))
    output_dir = str(tmp_path / "two")
    two = configure(tmp_path, gradient_accumulation_steps=2, output_dir=output_dir, save_steps=6)
    (main, text), (other, silence) = train_on_ranks(two, tmp_path)
    assert (main, other) == (0, 0), text + silence
    assert "Done after 10 steps" in text
    assert not silence.strip(), "only the main rank prints"
    expected, steps = records(tmp_path / "out"), records(tmp_path / "two")
    for name in ("loss", "grad_norm", "num_tokens", "num_target_tokens", *(key for key in expected[0] if "/" in key)):
        values = [step[name] for step in steps]
        assert values == pytest.approx([step[name] for step in expected], rel=1e-6, abs=2e-5), name
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=1e-6)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "out"), 1e-5)

    (tmp_path / "two" / "model.safetensors").unlink()
    one = configure(tmp_path, gradient_accumulation_steps=4, output_dir=output_dir, save_steps=6)
    one.training.try_resume_from_last_checkpoint = True
    train(one)  # from step 6
    assert [step["step"] for step in records(tmp_path / "two")[-4:]] == [7, 8, 9, 10]
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "out"), 1e-5)


def test_a_rank_that_cannot_train_stops_all(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=2)
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n')
    (main, text), (other, told) = train_on_ranks(config, tmp_path)
    assert main == 65
    assert "the conversation is empty" in text
    assert other != 0
    assert "Traceback" not in text + told
    assert "rank 0 stopped" in told


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=tolerance, atol=tolerance, msg=name)
