# SPDX-License-Identifier: Apache-2.0
"""The comparison of pretraining: the same setting for all arms, losses and arithmetic. Nothing is trained."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import Peer
from benchmarks.pretrain.recipe import ARMS, Recipe, Task, make_task, oumi_config, split, write_job
from benchmarks.pretrain.runs import Trained, held_out_loss, load_model, read_metrics, read_result
from benchmarks.pretrain.tables import NUM_SKIPPED_STEPS, Outcome, curve, spent, steps_to, summary, table, target_loss
from benchmarks.pretrain_cpu import PUBLISHED_LOSS, parse_options, report, scaled
from benchmarks.sft.measure import DRIVERS, Run, Steps
from oumi.core.configs import TrainingConfig
from oumi.core.optim.schedules import build_schedule
from oumi.core.plan.parts import SchedulePlan
from oumi.core.plan.refusals import refusals

TEXT = "to be, or not to be: that is the question.\n" * 40
SMALL = Recipe(num_layers=2, num_heads=2, width=16, block=8, batch=3, num_steps=20, warmup_steps=2)
NUM_STEPS = NUM_SKIPPED_STEPS + 5


@pytest.fixture
def nano_gpt(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DRIVERS))
    return importlib.import_module("nano_gpt")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    task = make_task(tmp_path, TEXT, SMALL, save_every=10, num_threads=1)
    task.run_folder.mkdir()
    return task


def trained(step_s: float, losses: dict[int, float]) -> Trained:
    steps = Steps((step_s,) * NUM_STEPS, (2 * step_s,) * NUM_STEPS, (3.0,) * NUM_STEPS, 2**30, 4.0, {"torch": "1"})
    return Trained(Run(steps, wall_s=20.0, cpu_s=30.0, contention=0.0), losses, seed=1)


def test_the_last_tenth_is_held_out() -> None:
    trained_text, held_out = split(TEXT)
    assert trained_text + held_out == TEXT
    assert len(trained_text) == int(0.9 * len(TEXT))


def test_the_tokenizer_has_the_ids_of_the_driver(task: Task) -> None:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(task.model)(TEXT, add_special_tokens=False)["input_ids"]
    assert tokens == [task.letters.index(letter) for letter in TEXT]


def test_nothing_of_the_config_is_refused(task: Task) -> None:
    config = TrainingConfig.from_str(write_job(task, ARMS["oumi"], seed=7).read_text())
    assert refusals(config) == []
    assert config.training.seed == config.training.data_seed == 7


def test_both_learning_rates_are_those_of_the_recipe(nano_gpt: Any, task: Task) -> None:
    training = oumi_config(task, 0)["training"]
    recipe = Recipe()
    plan = SchedulePlan(training["lr_scheduler_type"], recipe.warmup_steps, 0.0, training["lr_scheduler_kwargs"])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.learning_rate)
    schedule = build_schedule(optimizer, plan, recipe.num_steps)
    for step in range(recipe.num_steps):
        ours, theirs = schedule.get_last_lr()[0], nano_gpt.learning_rate(step, vars(recipe))
        assert abs(ours - theirs) < 1.01 * recipe.learning_rate / recipe.warmup_steps
        assert step < recipe.warmup_steps or ours == pytest.approx(theirs)
        optimizer.step()
        schedule.step()


def test_the_reimplemented_model_is_gpt2_without_biases(nano_gpt: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = nano_gpt.Gpt(vars(SMALL), 11), tmp_path / "checkpoint-20.pt"
    torch.save({"model": model.state_dict()}, path)
    tokens = torch.randint(11, (5 * SMALL.block + 1,))
    inputs_NT, targets_NT = (tokens[i : i + 5 * SMALL.block].view(5, SMALL.block) for i in (0, 1))
    expected = model(inputs_NT, targets_NT).item()
    assert held_out_loss(load_model(path, 11, SMALL), tokens, SMALL.block) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(math.log(11), rel=0.05)


def test_a_checkpoint_of_ours_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    from benchmarks.pretrain.recipe import gpt2_config

    torch.manual_seed(0)
    model = GPT2LMHeadModel(gpt2_config(11, SMALL)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 5)  # biases, too
    model.save_pretrained(tmp_path / "checkpoint-20")
    tokens = torch.randint(11, (3 * SMALL.block + 4,))
    loss = held_out_loss(load_model(tmp_path / "checkpoint-20", 11, SMALL), tokens, SMALL.block)
    assert loss == pytest.approx(held_out_loss(model, tokens, SMALL.block), rel=1e-6)


def test_windows_predict_the_next_token(nano_gpt: Any) -> None:
    import numpy as np

    tokens_BT, targets_BT = nano_gpt.windows(np.arange(100, dtype=np.uint16), 3, 8)
    assert tokens_BT.shape == targets_BT.shape == (3, 8)
    assert torch.equal(targets_BT, tokens_BT + 1)


def test_only_matrices_decay(nano_gpt: Any) -> None:
    groups = nano_gpt.make_optimizer(nano_gpt.Gpt(vars(SMALL), 11), vars(SMALL), False).param_groups
    assert [group["weight_decay"] for group in groups] == [SMALL.weight_decay, 0.0]
    assert {weight.ndim for weight in groups[0]["params"]} == {2}


def test_the_step_of_a_loss_lies_on_a_line_between_two_measurements() -> None:
    assert steps_to({100: 2.0, 200: 1.9, 300: 1.7}, 1.8) == pytest.approx(250)
    assert steps_to({100: 2.0, 200: 1.9}, 2.5) == 100
    assert steps_to({100: 2.0, 200: 1.9}, 1.9) == pytest.approx(200)


def test_time_ends_within_a_step_and_the_first_step_is_replaced() -> None:
    assert spent([9.0, 1.0, 1.0, 1.0], 2.5, first=4.0) == 5.5
    assert spent([9.0, 1.0], 2.0, first=1.0) == 2.0


def test_the_loss_is_reached_by_every_run() -> None:
    slow = Outcome(ARMS["nanogpt"], [trained(1.0, {5: 2.2, 10: 1.95}), trained(1.0, {5: 2.2, 10: 1.7})])
    assert target_loss(1.88, [slow]) == 1.95
    assert target_loss(1.88, [Outcome(ARMS["oumi"], [trained(1.0, {10: 1.7})])]) == 1.88
    assert target_loss(1.88, [Outcome(ARMS["oumi"])]) == 1.88


def test_the_table_relates_each_arm_to_the_first() -> None:
    fast = Outcome(ARMS["oumi"], [trained(1.0, {5: 2.0, 10: 1.8})])
    slow = Outcome(Peer("Slow", "slow.py", None, note="see below"), [trained(2.0, {5: 2.1, 10: 1.9})], 1)
    failed = Outcome(Peer("Gone", "gone.py", None), failure="failed: ended with 1")
    outcomes = {"oumi": fast, "slow": slow, "gone": failed}
    rows = summary(outcomes, 2.0, SMALL)
    assert rows["slow"]["time_ratio"] == pytest.approx(7.5 * 2 / 5)
    lines = table(rows).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        "Slow [2]", "3.00", "3.00", "15.0", "17.0", "30.0", "8", "1.9000", "12", "4000.0", "2.0", "20.0", "30.0",
        "1,024", "1, 1 discarded",
    ]  # fmt: skip
    assert "failed: ended with 1" in lines[4]
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert curve(outcomes).splitlines()[-1] == "| 10 | 1.8000 | 1.9000 |"


def test_steps_of_both_sides_are_read_alike(tmp_path: Path) -> None:
    step = {"step_time_s": 0.5, "cpu_time_s": 0.9, "loss": 3.0, "peak_memory_bytes": 10}
    lines = [json.dumps(record) for record in (step, {"step": 1, "eval_loss": 2.0}, step)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    ours = read_metrics(tmp_path / "metrics.jsonl", 4.0)
    result = {"walls_s": [0.5, 0.5], "cpus_s": [0.9, 0.9], "losses": [3.0, 3.0], "peak_bytes": 10, "versions": {}}
    (tmp_path / "result.json").write_text(json.dumps({**result, "first_step_ended": 104.0}))
    theirs = read_result(tmp_path / "result.json", 100.0)
    assert (ours.walls_s, ours.cpus_s, ours.first_step_s) == (theirs.walls_s, theirs.cpus_s, theirs.first_step_s)
    assert ours.losses == theirs.losses


def test_a_shorter_run_stretches_the_schedule() -> None:
    assert scaled(2000) == Recipe()
    assert (scaled(200).num_steps, scaled(200).warmup_steps) == (200, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "pytorch"], "unknown arm 'pytorch', expected one of oumi, nanogpt"),
        (["--steps", "300"], "not a multiple of --every 250"),
        (["--steps", "5"], "must be 20 or more"),
        (["--text", "nowhere.txt"], "no such file: nowhere.txt"),
    ],
)
def test_a_wrong_option_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--text", __file__, *words])
    assert message in capsys.readouterr().err


def test_the_report_has_the_loss_and_its_reason() -> None:
    facts = {
        "text": "a.txt",
        "date": "today",
        "commit": "c",
        "cpu": "x",
        "cores": 2,
        "threads": 2,
        "versions": {"oumi": {"torch": "2"}},
    }
    assert "is 1.88, measured" in report({**facts, "target_loss": PUBLISHED_LOSS}, SMALL, "", "")
    assert "is 2.1 (reached by every run; nanoGPT reports 1.88)" in report({**facts, "target_loss": 2.1}, SMALL, "", "")
