# SPDX-License-Identifier: Apache-2.0
"""The commands and the Python snippets of the documentation, verbatim."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oumi.core.configs.loading import dump
from tests.fork_server import run_python
from tests.runs import tiny_config

SNIPPET = """
from oumi.core.train import train
from oumi.core.configs import TrainingConfig
config = TrainingConfig.from_yaml("config.yaml")
config.training.learning_rate = 1e-4
train(config)
"""
SECOND_PACKAGE = """
from oumi.core.configs import TrainingConfig
from oumitrain import train
result = train(TrainingConfig.from_yaml("config.yaml"))
import oumi.train
from oumi import train as again
assert callable(again), "the module that replaced the function can be called"
print(result.output_dir, result.steps, result.metrics["loss"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a directory with a `config.yaml` of a run of two steps."""
    config = tiny_config(tmp_path, num_rows=4, num_train_epochs=2, output_dir="output")
    (tmp_path / "config.yaml").write_text(dump(config))
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a directory with the environment's programs first on the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=200)


def test_train_with_overrides_as_documented(folder: Path) -> None:
    command = "oumi train -c config.yaml --training.learning_rate 1e-4 --training.num_train_epochs 5"
    result = run(folder, *command.split())
    assert result.returncode == 0, result.stderr
    assert "Done after 5 steps" in result.stdout
    assert "oumi chat output" in result.stdout
    records = [json.loads(line) for line in (folder / "output" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["learning_rate"] == 1e-4
    resolved = (folder / "output" / "telemetry" / "training_config.yaml").read_text()
    assert "# training.learning_rate: --training.learning_rate" in resolved
    assert (folder / "output" / "config.yaml").read_text() == (folder / "config.yaml").read_text()


@pytest.mark.parametrize("snippet", [SNIPPET, SECOND_PACKAGE])
def test_snippets_as_documented(folder: Path, snippet: str) -> None:
    result = run_python("-c", snippet, folder=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "output" / "model.safetensors").is_file()


def test_python_m_oumi_trains(folder: Path) -> None:
    result = run_python("-m", "oumi", "train", "-c", "config.yaml", "--training.max_steps=1", folder=folder)
    assert result.returncode == 0, result.stderr


def test_a_typo_is_reported_with_its_place_and_no_traceback(folder: Path) -> None:
    result = run(folder, "oumi", "train", "-c", "config.yaml", "--training.lerning_rate", "1")
    assert result.returncode == 2
    assert "--training.lerning_rate" in result.stderr
    assert "did you mean 'learning_rate'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_run_in_the_same_directory_is_refused(folder: Path) -> None:
    (folder / "output").mkdir()
    with (folder / "output" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run_python("-m", "oumi", "train", "-c", "config.yaml", folder=folder)
    assert result.returncode == 73, result.stderr
    assert "in use" in result.stderr


def test_a_plan_is_printed_as_json(folder: Path) -> None:
    result = run(folder, "oumi", "plan", "-c", "config.yaml", "--json")
    plan = json.loads(result.stdout)
    assert plan["steps"]["total"] == 2
    assert plan["model"]["dtype"] == "float32"
