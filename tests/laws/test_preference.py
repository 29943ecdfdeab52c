# SPDX-License-Identifier: Apache-2.0
"""The laws for preferences: a plain loop, any cut, a resumed run, and the reference below an adapter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from oumi.core.batch import Batch
from oumi.core.configs import PeftParams, TrainingConfig
from oumi.core.configs.methods import DpoSettings
from oumi.core.data.training_data import read_training_data
from oumi.core.engine.gradients import add_gradients, like_largest, try_largest_micro_batch
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.laws.trl_reference import move
from tests.runs import build, losses, records, tiny_config
from tests.tiny import save_tiny_model, write_judged, write_pairs

BETA = 0.3


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {"beta": BETA}),
    "dpo_sft": ("dpo", {"beta": BETA, "loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.5]}),
    "kto": ("kto", {"beta": BETA}),
    "orpo": ("orpo", {}),
    "cpo": ("cpo", {}),
    "simpo": ("simpo", {}),
}
"""Methods with their arguments, by the name of a test case."""


def config_of(name: str, folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run of a method of `METHODS` on tiny pairs, or on tiny judged answers."""
    method, settings = METHODS[name]
    shape = {"method": method, "trainer_kwargs": settings, "num_train_epochs": 1}
    config = tiny_config(folder, **{**shape, **training})
    rows, is_kto = config.data.train.datasets[0], method == "kto"
    rows.dataset_name = "kto_jsonl" if is_kto else "preference_pairs_jsonl"
    rows.dataset_path = str(write_judged(folder / "judged.jsonl") if is_kto else write_pairs(folder / "pairs.jsonl"))
    return config


def dpo_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run of direct preference optimization on tiny pairs."""
    return config_of("dpo", folder, **training)


@pytest.mark.parametrize(("num_rows", "is_single"), [(25, True), (24, False)])
def test_a_step_of_one_judged_answer_is_noted(tmp_path: Path, num_rows: int, is_single: bool) -> None:
    config = config_of("kto", tmp_path)
    config.data.train.datasets[0].sample_count = num_rows
    notes = make_plan(config, gather_facts(config)).notes
    assert is_single == any("kto: the last step of an epoch has one row" in note for note in notes)


def test_arguments_of_the_reference_without_one_are_noted(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, trainer_kwargs={"loss_type": "sft", "precompute_ref_log_probs": True})
    notes = make_plan(config, gather_facts(config)).notes
    assert any("precompute_ref_log_probs: loss sft alone has no reference" in note for note in notes)


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


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.sample
def test_the_gradients_of_a_step_do_not_depend_on_how_it_is_cut(
    tmp_path: Path, name: str, dtype: str, tolerance: float
) -> None:
    config = config_of(name, tmp_path, per_device_train_batch_size=6, gradient_accumulation_steps=1)
    config.model.torch_dtype_str = dtype
    run = build(config, NativeTrainer).run
    move(run.model)  # away from the reference, where every pair has the same coefficient
    (batch,) = next(run.loader.from_step(0))
    per_row = len(batch.sources) // batch.num_rows
    results = []
    for parts in ([batch], batch.cut(3), [batch.part(3, 6), batch.part(0, 3)], batch.cut(6)):
        assert all(part.num_rows * per_row == len(part.sources) for part in parts), "no pair is parted"
        run.optimizer.zero_grad()
        loss = add_gradients(run, parts, 6)
        gradient = torch.cat([weight.grad.flatten() for weight in run.model.parameters()])
        results.append((loss.means(loss.flat().tolist()), loss.total, gradient))
    (metrics, total, gradient), *others = results
    assert len(metrics) >= 8
    for other_metrics, other_total, other_gradient in others:
        assert (other_gradient - gradient).norm() <= tolerance * gradient.norm()
        torch.testing.assert_close(other_total, total, rtol=1e-5, atol=1e-6)
        assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_largest_micro_batch_is_one_of_the_method(tmp_path: Path, name: str) -> None:
    run = build(config_of(name, tmp_path), NativeTrainer).run
    largest = LargestMicroBatch(80, 32)
    batch = like_largest(largest, run.plan.method)
    assert (batch.num_tokens, batch.num_rows) == (80, 3)
    assert (batch.mismatched is None) == (name != "kto"), "what a step also computes takes memory, too"
    try_largest_micro_batch(run, largest)
    assert all(weight.grad is None or not weight.grad.any() for weight in run.model.parameters())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.sample(2)
def test_a_resumed_run_is_bitwise_the_uninterrupted_run(tmp_path: Path, name: str) -> None:
    train(config_of(name, tmp_path, max_steps=6))
    train(config_of(name, tmp_path, max_steps=6, output_dir=str(tmp_path / "parts"), save_steps=3))
    for path in (tmp_path / "parts").glob("*.safetensors"):
        path.unlink()
    (tmp_path / "parts" / "checkpoint-6").rename(tmp_path / "later")
    resume = {"save_steps": 3, "try_resume_from_last_checkpoint": True, "output_dir": str(tmp_path / "parts")}
    train(config_of(name, tmp_path, max_steps=6, **resume))
    assert losses(tmp_path / "parts")[-3:] == losses(tmp_path / "out")[-3:]
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_killed_again_and_again_ends_bitwise_as_it_would(tmp_path: Path, name: str) -> None:
    train(config_of(name, tmp_path, num_train_epochs=4, output_dir=str(tmp_path / "whole"), save_steps=2))
    config = config_of(name, tmp_path, num_train_epochs=4, save_steps=2, try_resume_from_last_checkpoint=True)
    config.to_yaml(tmp_path / "train.yaml")
    driver = str(Path(__file__).with_name("kill_driver.py"))
    command = [sys.executable, driver, str(tmp_path / "train.yaml"), "5", "4", "3"]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) > 0
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "whole")]
    assert weights[0] == weights[1]


def test_the_only_row_of_a_step_is_compared_with_no_other(tmp_path: Path) -> None:
    config = config_of("kto", tmp_path, per_device_train_batch_size=4)
    config.data.train.datasets[0].sample_count = 9
    run = build(config, NativeTrainer).run
    move(run.model)
    (batch,) = next(run.loader.from_step(1))
    assert (batch.num_rows, batch.mismatched) == (1, None)
    loss = add_gradients(run, [batch], 1)
    assert loss.means(loss.flat().tolist())["kl"] == 0


CLOSED_FORMS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "cdpo": (
        {"label_smoothing": 0.2},
        lambda model, reference: (
            -0.8 * logsigmoid(margin(model - reference)) - 0.2 * logsigmoid(-margin(model - reference))
        ),
    ),
    "reference_free": ({"reference_free": True}, lambda model, _: -logsigmoid(margin(model))),
}


def margin(log_probs_P2: torch.Tensor) -> torch.Tensor:
    return BETA * (log_probs_P2[:, 0] - log_probs_P2[:, 1])


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_loss_that_trl_does_not_have_equals_its_formula(tmp_path: Path, name: str) -> None:
    settings, formula = CLOSED_FORMS[name]
    config = dpo_config(tmp_path, trainer_kwargs={"beta": BETA, **settings}, gradient_accumulation_steps=1)
    run = build(config, NativeTrainer).run
    move(run.model)
    (batch,) = next(run.loader.from_step(0))
    moved, reference = (
        AutoModelForCausalLM.from_pretrained(config.model.model_name, dtype=torch.float32) for _ in range(2)
    )
    move(moved)
    log_probs = [
        torch.stack([log_prob_of(model, document) for document in batch.documents()]).view(-1, 2)
        for model in (moved, reference)
    ]
    assert run.method.loss(run.model, batch, {}).total.item() == pytest.approx(
        formula(*log_probs).sum().item(), rel=1e-5
    )


def log_prob_of(model: Any, document: Batch) -> torch.Tensor:
    with torch.no_grad():
        log_probs_NV = torch.log_softmax(model(document.tokens[None]).logits[0, document.trained].double(), -1)
    return log_probs_NV.gather(1, document.targets[document.trained][:, None]).sum()


def test_rpo_alpha_is_another_spelling_of_a_list_of_losses() -> None:
    old = DpoSettings(loss_type="sigmoid", rpo_alpha=0.7)
    assert old.weights == DpoSettings(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7]).weights


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("dpo", {"loss_type": "aot"}, "'aot' is not supported: it is no sum over pairs: it sorts"),
        ("dpo", {"loss_type": ["sigmoid", "hinges"]}, "unknown loss 'hinges', did you mean 'hinge'?"),
        ("dpo", {"loss_type": ["sigmoid", "sigmoid"]}, "a list of different ones"),
        ("dpo", {"loss_type": []}, "must be one loss"),
        ("dpo", {"loss_weights": [1.0, 2.0]}, "loss_weights: has 2 values, loss_type names 1"),
        ("dpo", {"loss_type": "hinge", "label_smoothing": 0.1}, "loss_type hinge does not read it"),
        ("dpo", {"loss_type": "exo_pair"}, "needs a value above 0"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing"),
        ("dpo", {"discopop_tau": 1.0}, "loss_type sigmoid does not read it; discopop would"),
        ("dpo", {"f_alpha_divergence_coef": 1.0}, "only f_divergence_type alpha_divergence reads it"),
        ("dpo", {"loss_type": ["sft"], "rpo_alpha": 1.0}, "loss_type names already"),
        ("dpo", {"betta": 1.0}, "did you mean 'beta'?"),
        ("cpo", {"simpo_gamma": 1.0}, "loss_type sigmoid does not read it; simpo would"),
        ("kto", {"loss_type": "bco"}, "loss_type"),
        ("orpo", {"label_smoothing": 0.1}, "it takes"),
        ("kpo", {}, "has no method 'kpo', did you mean"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_by_name(
    tmp_path: Path, method: str, settings: dict[str, Any], message: str
) -> None:
    config = tiny_config(tmp_path, method=method, trainer_kwargs=settings)
    problems = "\n".join(f"{problem.key}: {problem.message}" for problem in refusals(config))
    assert message in problems


def test_a_step_of_one_judged_answer_is_refused(tmp_path: Path) -> None:
    config = config_of("kto", tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    with pytest.raises(ConfigError, match="a step needs 2 rows or more"):
        make_plan(config, gather_facts(config))
    config.training.trainer_kwargs = {"loss_type": "apo_zero_unpaired"}
    assert not make_plan(config, gather_facts(config)).method.mismatches
    config.training.trainer_kwargs = {}
    assert make_plan(config, gather_facts(config), world_size=2).method.mismatches


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
    before = run.method.loss(run.model, batch, {})
    assert before.metrics["rewards/margins"][0].item() == pytest.approx(0, abs=1e-4), "the model is its own reference"
    with torch.no_grad():
        for weight in run.model.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    after = run.method.loss(run.model, batch, {})
    for kind in ("chosen", "rejected"):
        # A reward is beta times the log-probability of the model less that of the reference.
        of_reference = [
            (loss.metrics[f"logps/{kind}"] - loss.metrics[f"rewards/{kind}"] / BETA)[0] for loss in (before, after)
        ]
        assert of_reference[1].item() == pytest.approx(of_reference[0].item(), abs=1e-3)
        assert after.metrics[f"rewards/{kind}"][0].abs().item() > 5e-3, "the model itself has moved"


def test_pairs_that_were_not_trained_are_measured(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4)
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    result = train(config)
    assert result.metrics["eval_rewards/accuracies"] > 0.9
    assert result.metrics["eval_loss"] < 0.6
    assert "eval_perplexity" not in result.metrics
