# SPDX-License-Identifier: Apache-2.0
"""The files of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import dump
from oumi.core.train import train
from tests.runs import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingConfig, Path]:
    """Returns the config of a run that is done, and its directory."""
    config = tiny_config(
        tmp_path_factory.mktemp("run"), max_steps=4, save_steps=2, logging_steps=1, include_performance_metrics=True
    )
    config.training.enable_tensorboard = True
    train(config, source="# as given\n")
    return config, Path(config.training.output_dir)


def test_all_files_that_describe_a_run_are_written(run: tuple[TrainingConfig, Path]) -> None:
    _, out = run
    for name in (
        "config.yaml", "plan.json", "environment.json", "data_report.json", "metrics.jsonl", "metrics_rank0000.jsonl",
        "logs/rank_0000.log", "telemetry/training_config.yaml", "telemetry/world_size.json",
        "telemetry/devices_info.txt", "telemetry/telemetry_callback_rank0000.json",
        "telemetry/telemetry_callback_metrics_rank0000.json", "model.safetensors", "config.json",
        "checkpoint-2/MANIFEST.json", "checkpoint-4/state/optimizer.safetensors",
    ):  # fmt: skip
        assert (out / name).stat().st_size > 0, name
    assert list((out / "tensorboard").glob("events.*"))


def test_the_config_is_kept_unchanged_and_resolved(run: tuple[TrainingConfig, Path]) -> None:
    config, out = run
    assert (out / "config.yaml").read_text() == "# as given\n"
    assert TrainingConfig.from_yaml(out / "telemetry" / "training_config.yaml") == config


def test_the_log_has_the_plan_and_the_steps(run: tuple[TrainingConfig, Path]) -> None:
    text = (run[1] / "logs" / "rank_0000.log").read_text()
    for words in ("learning rate 0.001 linear", "step 1/4  loss", "step 4/4  loss", "saved", "checkpoint-2"):
        assert words in text, words


def test_each_step_has_a_record(run: tuple[TrainingConfig, Path]) -> None:
    records = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for record in records:
        assert record["num_target_tokens"] < record["num_tokens"]
        assert record["tokens_per_second"] == pytest.approx(record["num_tokens"] / record["step_time_s"])
        assert record["cpu_time_s"] > 0
    assert records[-1]["total_tokens"] == sum(record["num_tokens"] for record in records)
    assert records[-1]["learning_rate"] == pytest.approx(1e-3 / 4)


def test_tensorboard_has_the_values_of_the_records(run: tuple[TrainingConfig, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[1] / "tensorboard"))
    events.Reload()
    records = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == pytest.approx({record["step"]: record["loss"] for record in records})


def test_weights_have_the_permissions_of_other_files(run: tuple[TrainingConfig, Path]) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for path in run[1].rglob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path


def test_the_environment_has_versions_and_seeds(run: tuple[TrainingConfig, Path]) -> None:
    environment = json.loads((run[1] / "environment.json").read_text())
    assert environment["seed"] == 42
    assert "torch" in environment["packages"]


def test_no_secret_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, max_steps=1, save_steps=1, include_performance_metrics=True)
    config.model.tokenizer_kwargs = {"token": SECRET}
    config.training.enable_tensorboard = True
    train(config, source=config_text(config), verbose=True)
    for path in Path(config.training.output_dir).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    output = capsys.readouterr()
    assert SECRET not in output.err + output.out
    for name in ("config.yaml", "telemetry/training_config.yaml"):
        again = TrainingConfig.from_yaml(Path(config.training.output_dir) / name)
        assert again.model.tokenizer_kwargs == {"token": "***"}
        assert again.training == config.training


SECRET = "correct-horse-battery"


def config_text(config: TrainingConfig) -> str:
    return f"# mine\n{dump(config)}"
