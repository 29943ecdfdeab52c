# SPDX-License-Identifier: Apache-2.0
"""Law 7: a loss or gradient that is not finite stops the run before the update, and names the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaModel

from oumi.core.batch import collate
from oumi.core.callbacks.guards import FiniteGuard
from oumi.core.checkpoint.store import read_facts
from oumi.core.configs import TrainingConfig
from oumi.core.data.pipeline.loader import Loader
from oumi.core.engine.step import take_step
from oumi.core.errors import NotFiniteError
from oumi.core.methods.method import Loss
from oumi.core.methods.next_token import NextToken
from oumi.core.monitoring.metrics_file import MetricsFile
from oumi.core.plan.parts import StepsPlan
from oumi.core.run import Callbacks
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.trl import TrlTrainer
from tests.runs import build, losses, tiny_config, tiny_mixture, weights
from tests.tiny import byte_tokenizer, save_tiny_model

POISON = "~"


def poisoned(folder: Path, lines: tuple[int, ...], **training: object) -> TrainingConfig:
    """Returns a run whose model computes NaN for a letter, and rows of which some contain it."""
    config = tiny_config(folder, num_rows=24, num_train_epochs=1, **training)
    token = byte_tokenizer().convert_tokens_to_ids(POISON)
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    chats = folder / "chats.jsonl"
    rows = chats.read_text().splitlines()
    for line in lines:
        rows[line - 1] = rows[line - 1].replace("What is", f"What{POISON} is", 1)
    chats.write_text("\n".join(rows) + "\n")
    return config


def untie(folder: Path) -> None:
    """Gives the model an output matrix of its own, so that only rows that hold the letter are touched by it."""
    save_tiny_model(folder / "model", tie_word_embeddings=False)


def first_step_with(folder: Path, lines: set[int]) -> tuple[int, set[int]]:
    """Returns the step (from 1) that first trains one of the lines, and which of them it trains."""
    rows = tiny_mixture(folder, 24)
    loader = Loader(rows, StepsPlan(2, 2, 1, 1, None, 24), seed=42)
    for step in range(6):
        broken = {i + 1 for i in loader.rows_of(step)} & lines
        if broken:
            return step + 1, broken
    raise AssertionError("an epoch trains every row")


def test_the_rows_that_give_no_number_are_named_and_no_weight_moves(tmp_path: Path) -> None:
    untie(tmp_path)
    config = poisoned(tmp_path, (5, 17), save_steps=1)
    step, guilty = first_step_with(tmp_path, {5, 17})
    with pytest.raises(NotFiniteError) as stopped:
        train(config)
    assert stopped.value.exit_code == 76
    message = str(stopped.value)
    assert f"step {step}: the loss is nan" in message
    named = {line for line in range(1, 25) if f"chats.jsonl:{line}\n" in message + "\n"}
    assert named == guilty
    assert len(losses(tmp_path / "out")) == step - 1
    kept = tmp_path / "out" / f"checkpoint-{step - 1}"
    assert kept.is_dir()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert torch.isfinite(weights(kept)["lm_head.weight"]).all()


def test_a_gradient_that_overflows_stops_before_the_update(tmp_path: Path) -> None:
    trainer = build(tiny_config(tmp_path), NativeTrainer)
    run = trainer.run
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    vast = torch.finfo(torch.float32).max

    class Steep(NextToken):
        def loss(self, model: torch.nn.Module, batch: object, step: object) -> Loss:
            total = sum(weight.sum() for weight in model.parameters())
            return Loss(vast * (total - total.detach()) * 4)  # zero, with a slope beyond every number

    run.method = Steep(run.plan, lambda: pytest.fail("this method has no reference"))
    rows = run.loader.rows
    with pytest.raises(NotFiniteError, match="the gradient norm is inf"):
        take_step(run, [collate([rows[0], rows[1]])])
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())


def test_a_step_that_overflows_in_half_precision_moves_neither_weights_nor_schedule(tmp_path: Path) -> None:
    trainer = build(tiny_config(tmp_path, lr_scheduler_type="linear"), NativeTrainer)
    run = trainer.run
    run.callbacks = Callbacks([FiniteGuard(lambda run: None)])
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    rows = run.loader.rows
    take_step(run, [collate([rows[0], rows[1]])])
    assert run.scaler.get_scale() == 2.0**126
    assert run.schedule.last_epoch == 0
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    take_step(run, [collate([rows[0], rows[1]])])
    assert run.schedule.last_epoch == 1
    assert any(not torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())


def test_steps_that_overflow_at_every_scale_stop_the_run(tmp_path: Path) -> None:
    trainer = build(tiny_config(tmp_path), NativeTrainer)
    run = trainer.run
    run.callbacks = Callbacks([FiniteGuard(lambda run: None)])
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    weight = next(iter(run.model.parameters()))
    weight.register_hook(lambda gradient: gradient * float("inf"))
    rows = run.loader.rows
    for _ in range(4):
        take_step(run, [collate([rows[0], rows[1]])])
    with pytest.raises(NotFiniteError, match="the gradient norm is"):
        take_step(run, [collate([rows[0], rows[1]])])


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
def test_other_trainers_stop_before_the_update_too(tmp_path: Path, trainer: str) -> None:
    untie(tmp_path)
    config = poisoned(tmp_path, (5, 17), save_steps=1, trainer_type=trainer)
    config.data.train.train_target = "ALL_ASSISTANT_TURNS"
    step, guilty = first_step_with(tmp_path, {5, 17})
    with pytest.raises(NotFiniteError, match=f"step {step}: the loss is nan") as stopped:
        train(config)
    assert all(f"chats.jsonl:{line}\n" in str(stopped.value) for line in guilty)
    assert len(losses(tmp_path / "out")) == step - 1
    assert torch.isfinite(weights(tmp_path / "out" / f"checkpoint-{step - 1}")["lm_head.weight"]).all()


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
def test_a_gradient_of_other_trainers_stops_before_the_update_too(tmp_path: Path, trainer: str) -> None:
    built = build(tiny_config(tmp_path, trainer_type=trainer), TrlTrainer)
    weight = next(iter(built.inner.model.parameters()))
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFiniteError, match="step 1: a gradient is not a finite number"):
        built.train()
    assert torch.equal(weight, before)


def test_a_step_size_that_diverges_is_stopped_with_advice(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, optimizer="sgd", learning_rate=1e30, max_grad_norm=None, num_train_epochs=5)
    with pytest.raises(NotFiniteError, match=r"lower training\.learning_rate"):
        train(config)


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_the_last_good_step_is_left_as_a_checkpoint_and_all_json_is_valid(tmp_path: Path, trainer: str) -> None:
    untie(tmp_path)
    config = poisoned(tmp_path, (17,), save_steps=0, trainer_type=trainer)
    config.data.train.train_target = "ALL_ASSISTANT_TURNS"
    step, _ = first_step_with(tmp_path, {17})
    assert step > 1
    with pytest.raises(NotFiniteError):
        train(config)
    checkpoint = tmp_path / "out" / f"checkpoint-{step - 1}"
    read_facts(checkpoint)
    assert torch.isfinite(weights(checkpoint)["lm_head.weight"]).all()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [checkpoint.name]
    for path in (tmp_path / "out").rglob("*.json*"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        for line in lines:
            json.loads(line, parse_constant=pytest.fail)


def test_the_checkpoint_before_a_failed_step_resumes_as_if_the_step_had_not_failed(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", attention_dropout=0.3)
    config = tiny_config(tmp_path, num_train_epochs=1)
    config.training.output_dir = str(tmp_path / "whole")
    train(config)
    config.training.output_dir = str(tmp_path / "out")
    config.training.try_resume_from_last_checkpoint = True
    metrics, is_poisoned = tmp_path / "out" / "metrics.jsonl", [False]

    def poison(module: torch.nn.Module, _: object, output: object) -> object:
        is_fourth_step = metrics.exists() and metrics.read_bytes().count(b"\n") == 3
        if isinstance(module, LlamaModel) and is_fourth_step:
            is_poisoned[0] = True
            return type(output)(last_hidden_state=output.last_hidden_state * float("nan"))  # type: ignore[attr-defined]
        return output

    handle = register_module_forward_hook(poison)
    try:
        with pytest.raises(NotFiniteError):
            train(config)
    finally:
        handle.remove()
    assert is_poisoned[0]
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
    train(config)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_a_value_that_is_not_finite_is_null_in_the_metrics(tmp_path: Path) -> None:
    sink = MetricsFile()
    run = build(tiny_config(tmp_path), NativeTrainer).run
    sink.start(run)
    sink.step(run, {"step": 1, "grad_norm": float("nan"), "loss": float("inf")})
    sink.close()
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == '{"step": 1, "grad_norm": null, "loss": null}\n'
