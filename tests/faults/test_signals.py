# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped by a signal saves a checkpoint, prints how to resume, and resumes to the same weights."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from oumi.core.train import train
from tests.fork_server import ForkedProcess, start_python
from tests.runs import losses, tiny_config, weights

STEPS = 120


def start(config: Path, *overrides: str) -> ForkedProcess:
    return start_python("-m", "oumi", "train", "-c", str(config), *overrides)


def wait_for_steps(output_dir: Path, num_steps: int) -> None:
    """Waits until a run has written the metrics of `num_steps` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = output_dir / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= num_steps:
            return
        time.sleep(0.02)
    raise AssertionError("the run takes no steps")


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ("OUMI", signal.SIGTERM),
        pytest.param("OUMI", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("TRL_SFT", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_with_the_command_that_it_names(tmp_path: Path, trainer: str, number: int) -> None:
    shape = {"trainer_type": trainer, "max_steps": STEPS, "lr_scheduler_type": "linear"}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    tiny_config(tmp_path, **shape).to_yaml(tmp_path / "config.yaml")
    out = tmp_path / "out"
    running = start(tmp_path / "config.yaml")
    wait_for_steps(out, 5)
    running.send_signal(number)
    errors = running.communicate(timeout=60)[1]
    assert running.returncode == 75, errors
    assert "--training.try_resume_from_last_checkpoint true" in errors
    assert "Traceback" not in errors
    (checkpoint,) = out.glob("checkpoint-*")
    assert 5 <= int(checkpoint.name.rpartition("-")[2]) < STEPS
    again = start(tmp_path / "config.yaml", "--training.try_resume_from_last_checkpoint", "true")
    errors = again.communicate(timeout=120)[1]
    assert again.returncode == 0, errors
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=0 if trainer == "OUMI" else 1e-6)
    ours, expected = weights(out), weights(tmp_path / "whole")
    same = torch.equal if trainer == "OUMI" else lambda a, b: torch.allclose(a, b, atol=1e-6)
    assert all(same(ours[name], expected[name]) for name in expected)


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_rows=2000, per_device_train_batch_size=2000, gradient_accumulation_steps=1)
    config.training.num_train_epochs = 50
    config.to_yaml(tmp_path / "config.yaml")
    running = start(tmp_path / "config.yaml")
    wait_for_steps(tmp_path / "out", 1)
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    signaled = time.monotonic()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert time.monotonic() - signaled < 2.0
    assert running.returncode not in (0, 75)
