# SPDX-License-Identifier: Apache-2.0
"""The short recipe of pretraining: texts about words that were never seen become far likelier."""

from __future__ import annotations

import json
from pathlib import Path

from oumi.core.configs import TrainingConfig
from oumi.core.recipes import configs_dir
from oumi.core.train import train


def test_texts_that_were_not_trained_take_fewer_bits(tmp_path: Path) -> None:
    config = TrainingConfig.from_yaml(configs_dir() / "recipes" / "quickstart" / "pretrain" / "train.yaml")
    config.training.output_dir = str(tmp_path / "out")
    config.training.max_steps, config.training.eval_steps = 60, 1  # the first evaluation after a step of warm-up
    config.data.train.datasets[0].dataset_kwargs = {"num_rows": 1200}
    config.data.validation.datasets[0].dataset_kwargs = {"num_rows": 8}
    train(config)
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    bits = [record["eval_bits_per_byte"] for record in records if "eval_bits_per_byte" in record]
    assert len(bits) == 60
    assert bits[0] > 5
    assert bits[-1] < 2
