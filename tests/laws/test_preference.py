# SPDX-License-Identifier: Apache-2.0
"""The laws for preferences: a plain loop, any cut, a resumed run, and the reference below an adapter."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from oumi.core.batch import collate
from oumi.core.configs import PeftParams, TrainingConfig
from oumi.core.data.training_data import read_training_data
from oumi.core.engine.gradients import add_gradients
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, losses, records, tiny_config
from tests.tiny import save_tiny_model, write_pairs

BETA = 0.3


def dpo_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run of direct preference optimization on tiny pairs."""
    method = {"method": "dpo", "trainer_kwargs": {"beta": BETA}, "num_train_epochs": 1}
    config = tiny_config(folder, **{**method, **training})
    config.data.train.datasets[0].dataset_name = "preference_pairs_jsonl"
    config.data.train.datasets[0].dataset_path = str(write_pairs(folder / "pairs.jsonl"))
    return config


def test_twenty_steps_equal_a_closed_form_loop(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, max_steps=20)
    train(config)
    expected = closed_form(config, 20)
    steps = records(tmp_path / "out")
    for name in expected:
        assert [step[name] for step in steps] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    assert expected["loss"][0] == pytest.approx(0.693147, abs=1e-5)  # log 2: the model is its own reference
    assert expected["loss"][-1] < 0.5


def closed_form(config: TrainingConfig, num_steps: int) -> dict[str, list[float]]:
    """Returns loss and accuracy of each step of a loop that runs every document alone, by the paper's formula."""
    plan = make_plan(config, gather_facts(config))
    data = read_training_data(plan, datetime(2026, 1, 1))
    plan = plan.with_num_rows(data.num_rows)
    loader = data.loader(plan)
    dtype = getattr(torch, config.model.torch_dtype_str.replace("auto", "float32"))
    model = AutoModelForCausalLM.from_pretrained(config.model.model_name, dtype=dtype)
    reference = deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.training.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, num_steps)
    metrics: dict[str, list[float]] = {"loss": [], "rewards/accuracies": []}
    for step in range(num_steps):
        margins = []
        for row in loader.rows_of(step):
            (pair,) = data.train.group(row)
            chosen, rejected = (
                config.training.trainer_kwargs["beta"] * (log_prob(model, document) - log_prob(reference, document))
                for document in pair.documents()
            )
            margins.append(chosen - rejected)
        loss = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        metrics["loss"].append(loss.item())
        metrics["rewards/accuracies"].append(sum(float(margin > 0) for margin in margins) / len(margins))
    return metrics


def log_prob(model: Any, document: Any) -> torch.Tensor:
    """Returns the log-probability of the trained tokens of a document."""
    tokens = torch.tensor(document.tokens).long()
    log_probs = torch.log_softmax(model(tokens[None]).logits[0, :-1], -1)
    of_tokens = log_probs.gather(1, tokens[1:, None])[:, 0]
    return of_tokens[torch.tensor(document.is_target)[1:]].double().sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_the_gradients_of_pairs_do_not_depend_on_how_they_are_cut(tmp_path: Path, dtype: str, tolerance: float) -> None:
    config = dpo_config(tmp_path)
    config.model.torch_dtype_str = dtype
    run = build(config, NativeTrainer).run
    with torch.no_grad():  # away from the reference, where every pair has the same coefficient
        for weight in run.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    rows = run.loader.rows
    batch = collate([rows[i] for i in range(6)])
    results = []
    for parts in ([batch], batch.cut(3), [batch.part(3, 6), batch.part(0, 3)], batch.cut(6)):
        assert all(part.num_rows * 2 == len(part.sources) for part in parts), "no pair is parted"
        run.optimizer.zero_grad()
        loss = add_gradients(run, parts, 6)
        gradient = torch.cat([weight.grad.flatten() for weight in run.model.parameters()])
        results.append((loss, gradient))
    (loss, gradient), *others = results
    for other_loss, other_gradient in others:
        assert (other_gradient - gradient).norm() <= tolerance * gradient.norm()
        for name, value in loss.metrics.items():
            torch.testing.assert_close(other_loss.metrics[name], value, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    uninterrupted = dpo_config(tmp_path, max_steps=6)
    train(uninterrupted)
    train(dpo_config(tmp_path, max_steps=6, output_dir=str(tmp_path / "parts"), save_steps=3))
    for path in (tmp_path / "parts").glob("*.safetensors"):
        path.unlink()
    (tmp_path / "parts" / "checkpoint-6").rename(tmp_path / "later")
    resume = {"save_steps": 3, "try_resume_from_last_checkpoint": True, "output_dir": str(tmp_path / "parts")}
    train(dpo_config(tmp_path, max_steps=6, **resume))
    assert losses(tmp_path / "parts")[-3:] == losses(tmp_path / "out")[-3:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "parts")]
    assert weights[0] == weights[1]


def test_below_an_adapter_the_model_is_its_own_reference(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, max_steps=12, use_peft=True, learning_rate=1e-2)
    train(config)
    steps = records(tmp_path / "out")
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["loss"] < 0.5


@pytest.mark.parametrize(
    "peft",
    [
        None,
        {"lora_bias": "none"},
        {"lora_bias": "all"},
        {"lora_bias": "lora_only"},
        {"lora_init_weights": "pissa"},
        {"lora_init_weights": "olora"},
        {"lora_modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_no_trained_weight_changes_the_reference(tmp_path: Path, peft: dict[str, Any] | None) -> None:
    save_tiny_model(tmp_path / "model", attention_bias=True)
    config = dpo_config(tmp_path, use_peft=peft is not None)
    config.peft = PeftParams(lora_target_modules=["q_proj", "v_proj"], **(peft or {}))
    run = build(config, NativeTrainer).run
    batch = next(run.loader.from_step(0))[0]
    before = run.method.loss(run.model, batch)
    assert before.metrics["rewards/margins"].item() == pytest.approx(0, abs=1e-4), "the model is its own reference"
    with torch.no_grad():
        for weight in run.model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    after = run.method.loss(run.model, batch)
    for kind in ("chosen", "rejected"):
        # A reward is beta times the log-probability of the model less that of the reference.
        of_reference = [
            loss.metrics[f"logps/{kind}"] - loss.metrics[f"rewards/{kind}"] / BETA for loss in (before, after)
        ]
        assert of_reference[1].item() == pytest.approx(of_reference[0].item(), abs=1e-3)
        assert after.metrics[f"rewards/{kind}"].abs().item() > 5e-3, "the model itself has moved"


def test_pairs_that_were_not_trained_are_measured(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4)
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    result = train(config)
    assert result.metrics["eval_rewards/accuracies"] > 0.9
    assert result.metrics["eval_loss"] < 0.6
    assert "eval_perplexity" not in result.metrics
