# SPDX-License-Identifier: Apache-2.0
"""The short recipes of preferences: of two answers about words never seen, the kind one becomes the likelier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oumi.core.configs import TrainingConfig
from oumi.core.data.pipeline.loader import in_order
from oumi.core.methods.log_probs import log_probs_of
from oumi.core.recipes import configs_dir
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build

SIZE = 48


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "cpo", "simpo"])
def test_the_kind_answer_becomes_the_likelier_of_two(tmp_path: Path, method: str) -> None:
    config = TrainingConfig.from_yaml(configs_dir() / "recipes" / "quickstart" / method / "train.yaml")
    config.training.output_dir = str(tmp_path / "out")
    config.training.eval_strategy, config.training.eval_steps = "steps", 40
    trainer = build(config, NativeTrainer)
    before = share_of_kind(trainer)
    trainer.train()
    metrics = trainer.run.metrics
    assert 0.3 < before < 0.7
    assert share_of_kind(trainer) > 0.9
    assert metrics["eval_rewards/accuracies"] > (0.8 if method == "kto" else 0.9)  # of KTO, the sign of each reward
    assert metrics["eval_rewards/margins"] > 0.05


@torch.no_grad()
def share_of_kind(trainer: NativeTrainer) -> float:
    """Returns the share of pairs that were not trained whose kind answer is the likelier, whatever the method."""
    kind = total = 0
    trainer.run.model.eval()
    for batch in in_order(trainer._data.validation, SIZE, trainer._data.preprocessor.collate):
        log_probs_P2 = log_probs_of(trainer.run.model(batch), batch).sums().view(-1, 2)
        kind += int((log_probs_P2[:, 0] > log_probs_P2[:, 1]).sum())
        total += len(log_probs_P2)
    trainer.run.model.train()
    return kind / total
