# SPDX-License-Identifier: Apache-2.0
"""Other trainers on several GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.train import train
from tests.laws.test_ranks import assert_close
from tests.ranks import free_port, run_ranks
from tests.runs import records, tiny_config, weights

DRIVER = Path(__file__).parents[1] / "laws" / "accelerate_driver.py"
"""Trains, and finds every parameter divided."""


@pytest.mark.multi_gpu
@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_fsdp_divides_the_model_and_trains_to_the_same_losses(tmp_path: Path, trainer: str, recomputes: bool) -> None:
    config = tiny_config(
        tmp_path, trainer_type=trainer, max_steps=6, save_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=4, enable_gradient_checkpointing=recomputes,
    )  # fmt: skip
    train(config)
    config.training.output_dir = str(tmp_path / "divided")
    config.training.gradient_accumulation_steps = 2
    config.fsdp.enable_fsdp = True
    config.to_yaml(tmp_path / "divided.yaml")
    command = (str(DRIVER), f"{free_port()}:{tmp_path / 'divided.yaml'}")
    ranks = run_ranks(2, *command, folder=Path(__file__).parents[2])
    assert [code for code, _ in ranks] == [0, 0], ranks
    expected = [step["loss"] for step in records(tmp_path / "out")]
    assert [step["loss"] for step in records(tmp_path / "divided")] == pytest.approx(expected, rel=1e-4)
    assert_close(weights(tmp_path / "divided"), weights(tmp_path / "out"), 1e-3)
