# SPDX-License-Identifier: Apache-2.0
"""Measurements on the validation set."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.train import train
from tests.runs import tiny_config


def test_the_validation_loss_holds_nothing_that_training_adds(tmp_path: Path) -> None:
    runs = []
    for name, added in (("plain", {}), ("added", {"label_smoothing": 0.3, "z_loss": 0.1})):
        config = tiny_config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, **added)
        config.training.learning_rate = 0.0
        config.training.output_dir = str(tmp_path / name)
        config.data.validation.datasets = list(config.data.train.datasets)
        runs.append(train(config).metrics)
    assert runs[0]["eval_loss"] == pytest.approx(runs[1]["eval_loss"], rel=1e-6)
    assert runs[1]["loss"] > runs[0]["loss"] * 1.01
