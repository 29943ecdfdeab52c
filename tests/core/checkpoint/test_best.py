# SPDX-License-Identifier: Apache-2.0
"""The best evaluation of a run: which one it is, what is kept and saved of it, and when a run ends early."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from oumi.core.configs import DatasetParams, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.best import BestPlan, metrics_of
from oumi.core.plan.methods import METHODS
from oumi.core.plan.refusals import check
from oumi.core.train import train
from tests.runs import records, tiny_config, weights
from tests.tiny import write_chats, write_pairs

OVERFITS = {"learning_rate": 0.02, "lr_scheduler_type": "constant", "num_train_epochs": 4, "eval_strategy": "steps"}
"""A rate at which the validation loss rises again soon."""


def config_of(folder: Path, **training: Any) -> TrainingConfig:
    config = tiny_config(
        folder, num_rows=8, **{"gradient_accumulation_steps": 1, "eval_steps": 2, **OVERFITS, **training}
    )
    others = write_chats(folder / "others.jsonl", 40)
    text = "\n".join(others.read_text().splitlines()[30:]) + "\n"
    others.write_text(text.replace("It is", "QZX VKJ").replace("Quite", "#@~"))
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy(update={"dataset_path": str(others)})]
    return config


def evaluations(folder: Path, metric: str = "eval_loss") -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[metric] for record in lines if metric in record}


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_the_final_model_is_that_of_the_best_evaluation(tmp_path: Path, trainer: str) -> None:
    out = tmp_path / "out"
    result = train(config_of(tmp_path, trainer_type=trainer, load_best_model_at_end=True))
    values = evaluations(out)
    best = min(values, key=lambda step: values[step])
    assert best < max(values) == result.steps == 16
    assert result.metrics["best_eval_loss"] == values[best]
    assert result.metrics["best_step"] == best
    assert checkpoints(out) == {f"checkpoint-{best}"}, "those of earlier best evaluations are superseded"
    saved = load_file(out / f"checkpoint-{best}" / "model.safetensors")
    assert all(saved[name].equal(tensor) for name, tensor in weights(out).items())


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_run_ends_early_and_is_complete(tmp_path: Path, trainer: str) -> None:
    out = tmp_path / "out"
    config = config_of(tmp_path, trainer_type=trainer, early_stopping_patience=2, try_resume_from_last_checkpoint=True)
    result = train(config)
    values = list(evaluations(out).values())
    worse = [later >= min(values[: i + 1]) for i, later in enumerate(values[1:])]
    assert worse[-2:] == [True, True]
    assert (True, True) not in list(pairwise(worse[:-1]))
    assert result.steps == 2 * len(values) < 16
    assert train(config).steps == result.steps, "there is nothing to resume"
    assert len(evaluations(out)) == len(values)


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_resumed_run_knows_the_best_evaluation_before_it(tmp_path: Path, trainer: str) -> None:
    out = tmp_path / "out"
    config = config_of(
        tmp_path, trainer_type=trainer, load_best_model_at_end=True, save_steps=5, try_resume_from_last_checkpoint=True
    )
    whole, expected = train(config), weights(out)
    best = int(whole.metrics["best_step"])
    assert best < 10
    last = {"checkpoint-16"} if trainer == "HF" else set()  # transformers saves after the last step, too
    assert checkpoints(out) == {"checkpoint-5", "checkpoint-10", "checkpoint-15", f"checkpoint-{best}"} | last
    for name in {"checkpoint-15"} | last:
        shutil.rmtree(out / name)
    (out / "run.json").unlink()
    resumed = train(config)
    assert [record["step"] for record in records(out)][:12] == list(range(1, 13))
    assert resumed.metrics["best_step"] == best
    assert all(tensor.equal(expected[name]) for name, tensor in weights(out).items())


def test_a_resumed_run_of_trl_reports_the_same_measures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = config_of(
        tmp_path, trainer_type="TRL_SFT", max_steps=4, save_steps=2, try_resume_from_last_checkpoint=True
    )
    whole = train(config).metrics
    shutil.rmtree(out / "checkpoint-4")
    (out / "run.json").unlink()
    resumed, times = train(config).metrics, ("runtime", "per_second")
    names = [name for name in whole if name.startswith("eval_") and not name.endswith(times)]
    assert {"eval_mean_token_accuracy", "eval_loss"} < set(names)
    assert {name: resumed[name] for name in names} == {name: whole[name] for name in names}


def test_a_missing_best_checkpoint_is_told_and_a_new_one_looked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    config = config_of(tmp_path, load_best_model_at_end=True, save_steps=5, try_resume_from_last_checkpoint=True)
    best = int(train(config).metrics["best_step"])
    for name in ("checkpoint-15", f"checkpoint-{best}"):
        shutil.rmtree(out / name)
    (out / "run.json").unlink()
    assert train(config).metrics["best_step"] > 10
    assert f"checkpoint-{best}, of the best evaluation, is missing" in caplog.text


def test_the_limit_of_checkpoints_spares_the_best_one(tmp_path: Path) -> None:
    for trainer in ("OUMI", "HF"):
        out = tmp_path / trainer
        result = train(
            config_of(
                tmp_path,
                trainer_type=trainer,
                output_dir=str(out),
                load_best_model_at_end=True,
                save_steps=2,
                save_total_limit=1,
            )
        )
        best = int(result.metrics["best_step"])
        assert best < 14
        assert checkpoints(out) == {f"checkpoint-{best}", "checkpoint-16"}


def test_a_run_without_an_evaluation_saves_its_last_model(tmp_path: Path) -> None:
    train(config_of(tmp_path, load_best_model_at_end=True, max_steps=2, eval_steps=50))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- no evaluation gave a number for eval_loss: the final model is that of step 2" in text


def test_an_adapter_of_the_best_evaluation_is_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = config_of(tmp_path, use_peft=True, load_best_model_at_end=True, greater_is_better=True, learning_rate=0.3)
    best = int(train(config).metrics["best_step"])
    assert best == 2, "the highest loss is the first one"
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (out / f"checkpoint-{best}" / name).read_bytes()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"metric_for_best_model": "eval_los"},
            r"metric_for_best_model: no metric 'eval_los', did you mean 'loss'",
        ),
        ({"metric_for_best_model": "f1"}, r"no metric 'f1'; the evaluation reports eval_loss, eval_perplexity"),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, r"load_best_model_at_end: needs evaluations"),
        ({"load_best_model_at_end": True, "save_final_model": False}, r"load_best_model_at_end: needs the final model"),
        ({"greater_is_better": True}, r"greater_is_better: has no effect without training\.metric_for_best_model"),
        ({"early_stopping_threshold": 0.1}, r"early_stopping_threshold: has no effect without"),
        (
            {"trainer_type": "HF", "trainer_kwargs": {"metric_for_best_model": "los"}},
            r"trainer_kwargs\.metric_for_best_model: no metric 'los', did you mean 'loss'",
        ),
        (
            {"method": "dpo", "metric_for_best_model": "rewards/chosen"},
            r"is eval_rewards/chosen better when it is greater\? Set training\.greater_is_better",
        ),
    ],
)
def test_keys_that_choose_no_evaluation_are_refused(tmp_path: Path, training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config_of(tmp_path, **training))


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.loss])
def test_the_names_of_a_method_are_those_that_its_evaluation_reports(tmp_path: Path, method: str) -> None:
    rows = write_pairs(tmp_path / "rows.jsonl", 4)
    if method == "kto":
        judged = [{"prompt": "Hi", "completion": f"Ho {i}", "label": i % 2 == 0} for i in range(4)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in judged))
    config = config_of(tmp_path, method=method, max_steps=1, eval_steps=1)
    if method == "next_token":
        rows.write_text("".join(json.dumps({"text": f"Hi {i}"}) + "\n" for i in range(4)))
    for split in (config.data.train, config.data.validation):
        split.datasets = [DatasetParams(dataset_name="text_sft", dataset_path=str(rows))]
    measured = {name for name in train(config).metrics if name.startswith("eval_")}
    assert measured == set(metrics_of(config.training))


@pytest.mark.parametrize(("trainer", "metric"), [("OUMI", "bits_per_byte"), ("TRL_SFT", "mean_token_accuracy")])
def test_a_metric_beside_the_loss_decides(tmp_path: Path, trainer: str, metric: str) -> None:
    config = config_of(tmp_path, trainer_type=trainer, max_steps=4, metric_for_best_model=metric)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Hi {i}"}) + "\n" for i in range(4)))
    for split in (config.data.train, config.data.validation):
        split.datasets = [DatasetParams(dataset_name="text", dataset_path=str(rows))]
    check(config)
    best = train(config).metrics[f"best_eval_{metric}"]
    values = evaluations(tmp_path / "out", f"eval_{metric}").values()
    assert best == (min if trainer == "OUMI" else max)(values)


@pytest.mark.parametrize("is_greater_better", [False, True])
def test_values_are_compared_in_the_direction_of_their_metric(is_greater_better: bool) -> None:
    plan = BestPlan("eval_x", is_greater_better, restores=True, patience=None, threshold=0.0)
    sign = 1 if is_greater_better else -1
    assert plan.is_better(sign * 1.0, None)
    assert plan.is_better(sign * 2.0, sign * 1.0)
    assert not plan.is_better(sign * 1.0, sign * 1.0)
    assert not plan.is_better(sign * 1.05, sign * 1.0, by=0.1)
    assert not plan.is_better(float("nan"), None)
