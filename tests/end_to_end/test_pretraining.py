# SPDX-License-Identifier: Apache-2.0
"""Pretraining from random weights on a stream of documents end to end, by every trainer and schedule alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.runs import records, tiny_config

STEPS, WARMUP = 20, 4
SCHEDULES: dict[str, dict[str, Any]] = {"cosine": {}, "warmup_stable_decay": {"num_decay_steps": 5}}


def rate(schedule: str, step: int) -> float:
    """Returns the share of the learning rate at a step, from 0, by definition."""
    if step < WARMUP:
        return step / WARMUP
    first = WARMUP if schedule == "cosine" else STEPS - 5
    done = max(step - first, 0) / (STEPS - first)
    return (1 + math.cos(math.pi * done)) / 2


def pretraining(folder: Path, trainer: str, schedule: str) -> TrainingConfig:
    words = np.array(["sun", "rain", "wind and", "snow,", "then", "a storm.", "Night", "fell", "over the sea"])
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(words, rng.integers(3, 60)))}) for _ in range(200)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    config = tiny_config(
        folder, trainer_type=trainer, max_steps=STEPS, lr_scheduler_type=schedule, warmup_steps=WARMUP,
        lr_scheduler_kwargs=SCHEDULES[schedule], eval_strategy="steps", eval_steps=10, output_dir=str(folder / trainer),
    )  # fmt: skip
    config.model.load_pretrained_weights = False
    config.model.model_max_length = 128
    config.data.train.stream = config.data.train.pack = True
    dataset = config.data.train.datasets[0].model_copy(
        update={
            "dataset_name": "text", "dataset_path": str(folder / "texts.jsonl"), "dataset_kwargs": {"seq_length": 64},
        }
    )  # fmt: skip
    config.data.train.datasets = [dataset]
    config.data.validation.datasets = [dataset.model_copy(update={"sample_count": 8})]
    return config


@pytest.mark.sample(1)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stream_of_documents_is_learned_by_every_trainer_alike(tmp_path: Path, schedule: str) -> None:
    runs = []
    for trainer in ("OUMI", "TRL_SFT", "HF"):
        train(pretraining(tmp_path, trainer, schedule))
        steps = records(tmp_path / trainer)
        assert [step["learning_rate"] for step in steps] == pytest.approx(
            [1e-3 * rate(schedule, step) for step in range(STEPS)]
        )
        lines = map(json.loads, (tmp_path / trainer / "metrics.jsonl").read_text().splitlines())
        measured = [
            {name: record[f"eval_{name}"] for name in ("loss", "perplexity", "bits_per_byte")}
            for record in lines
            if "eval_loss" in record
        ]
        assert len(measured) == 2
        assert measured[1]["bits_per_byte"] < measured[0]["bits_per_byte"] < math.log2(260)
        runs.append([*(step["loss"] for step in steps), *(value for record in measured for value in record.values())])
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert runs[2] == pytest.approx(runs[0], rel=1e-4)
