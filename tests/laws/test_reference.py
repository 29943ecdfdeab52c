# SPDX-License-Identifier: Apache-2.0
"""Law 4: our loop equals a plain PyTorch loop, and TRL's on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from oumi.core.data.pipeline.loader import Loader
from oumi.core.data.pipeline.mixture import Mixture, Part
from oumi.core.plan.parts import StepsPlan
from oumi.core.train import train
from tests.runs import losses, tiny_config, tiny_table


def test_fifty_steps_equal_a_plain_pytorch_loop(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_train_epochs=1, max_steps=50, weight_decay=0.1)
    train(config)
    assert losses(tmp_path / "out") == pytest.approx(plain_losses(tmp_path, 50), rel=1e-4)


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
def test_thirty_steps_equal_those_of_other_trainers(tmp_path: Path, trainer: str) -> None:
    ours = tiny_config(tmp_path, num_train_epochs=1, max_steps=30)
    theirs = tiny_config(
        tmp_path, num_train_epochs=1, max_steps=30, trainer_type=trainer, output_dir=str(tmp_path / "theirs")
    )
    theirs.data.train.collator_name = "text_completions_only_with_padding"
    train(ours)
    train(theirs)
    assert losses(tmp_path / "theirs") == pytest.approx(losses(tmp_path / "out"), rel=1e-4)


def plain_losses(folder: Path, num_steps: int) -> list[float]:
    """Returns the losses of a loop that runs every row alone, with the optimizer of torch."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    rows = Mixture([Part(tiny_table(folder, 24), None)])
    order = Loader(rows, StepsPlan(2, 2, 1, 1, num_steps, len(rows)), seed=42)
    vectors = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, num_steps)
    losses = []
    for step in range(num_steps):
        total, num_terms = torch.zeros(()), 0
        for i in order.rows_of(step):
            tokens = torch.tensor(rows[i].tokens).long()
            labels = torch.where(torch.tensor(rows[i].is_target), tokens, -100)[1:]
            logits = model(tokens[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            num_terms += int((labels != -100).sum())
        loss = total / num_terms
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
