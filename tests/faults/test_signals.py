# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped by a signal saves a checkpoint, prints how to resume, and resumes to the same weights."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from oumi.core.checkpoint.store import read_facts
from oumi.core.configs import TrainingConfig
from oumi.core.errors import PreemptedError
from oumi.core.train import train
from tests.fork_server import ForkedProcess, run_python, start_python
from tests.runs import losses, records, tiny_config, weights

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


@contextmanager
def signal_in_pass(number: int, is_meant: Callable[[bool, int], bool]) -> Iterator[None]:
    """Sends a signal within those forward passes for which `is_meant(is_training, count)` is True."""
    counts = {True: 0, False: 0}

    def send(module: torch.nn.Module, _: object) -> None:
        if isinstance(module, PreTrainedModel) and hasattr(module, "layers"):
            counts[module.training] += 1
            if is_meant(module.training, counts[module.training]):
                os.kill(os.getpid(), number)

    handle = register_module_forward_pre_hook(send)
    try:
        yield
    finally:
        handle.remove()


def evaluated(folder: Path, trainer: str, **training: object) -> TrainingConfig:
    config = tiny_config(
        folder, trainer_type=trainer, max_steps=4, eval_strategy="steps", per_device_eval_batch_size=2,
        try_resume_from_last_checkpoint=True, **{"eval_steps": 2, **training},
    )  # fmt: skip
    config.data.validation.datasets = list(config.data.train.datasets)
    return config


@pytest.mark.sample(2)
@pytest.mark.parametrize("count", [3, 15], ids=["first", "last"])
@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_signal_within_an_evaluation_stops_it_and_the_resumed_run_repeats_it(
    tmp_path: Path, trainer: str, count: int
) -> None:
    passes = [0]

    def is_meant(is_training: bool, _: int) -> bool:
        # Forms of the model are compared in evaluation mode before the run has taken a step.
        passes[0] += not is_training and (tmp_path / "out" / "metrics.jsonl").exists()
        return not is_training and passes[0] == count

    with signal_in_pass(signal.SIGTERM, is_meant), pytest.raises(PreemptedError):
        train(evaluated(tmp_path, trainer))
    assert passes[0] <= count + 1  # of twelve in each evaluation
    step = 2 if count < 12 else 4
    read_facts(tmp_path / "out" / f"checkpoint-{step}")
    train(evaluated(tmp_path, trainer))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3, 4]
    assert records(tmp_path / "out")[-1]["total_tokens"] == sum(r["num_tokens"] for r in records(tmp_path / "out"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_another_trainer_evaluates_only_at_the_steps_of_the_plan(tmp_path: Path) -> None:
    train(evaluated(tmp_path, "HF", eval_steps=3))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3]


WHILE_SAVING = """
import os, signal, sys, time

def send(event, arguments):
    if event == "open" and PLACE in str(arguments[0]) and send.left:
        send.left -= 1
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

send.left = 3
sys.addaudithook(send)
sys.argv = ["oumi", "train", "-c", "config.yaml"]
from oumi.cli.main import run
run()
"""


@pytest.mark.parametrize("trainer", ["OUMI", pytest.param("HF", marks=pytest.mark.slow)])
def test_no_number_of_signals_loses_the_checkpoint_under_way(tmp_path: Path, trainer: str) -> None:
    tiny_config(tmp_path, trainer_type=trainer, max_steps=9, save_steps=2).to_yaml(tmp_path / "config.yaml")
    code = WHILE_SAVING.replace("PLACE", "'checkpoint-2'")
    done = run_python("-c", code, folder=tmp_path)
    assert done.returncode == 75, done.stderr
    read_facts(tmp_path / "out" / "checkpoint-2")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_signals_while_the_final_model_is_written_end_nothing(tmp_path: Path) -> None:
    tiny_config(tmp_path, max_steps=2).to_yaml(tmp_path / "config.yaml")
    done = run_python("-c", WHILE_SAVING.replace("PLACE", "'out/config.json'"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished_step"] == 2
    assert weights(tmp_path / "out")


def test_a_signal_before_the_first_step_ends_the_run_at_once(tmp_path: Path) -> None:
    tiny_config(tmp_path).to_yaml(tmp_path / "config.yaml")
    code = WHILE_SAVING.replace("PLACE", "'model/config.json'")
    began = time.monotonic()
    done = run_python("-c", code, folder=tmp_path)
    assert time.monotonic() - began < 60
    assert done.returncode in (75, 130)  # 130: before the run was entered
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_two_signals_at_once_are_one_request(tmp_path: Path) -> None:
    def is_meant(is_training: bool, number: int) -> bool:
        if is_training and number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return is_training and number == 3

    with signal_in_pass(signal.SIGINT, is_meant), pytest.raises(PreemptedError):
        train(tiny_config(tmp_path))
    assert len([*(tmp_path / "out").glob("checkpoint-*/MANIFEST.json")]) == 1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_warning_of_a_scheduler_stops_a_run(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with signal_in_pass(number, lambda is_training, count: is_training and count == 3), pytest.raises(PreemptedError):
        train(tiny_config(tmp_path))
    assert len([*(tmp_path / "out").glob("checkpoint-*/MANIFEST.json")]) == 1


IN_OWN_GROUP = """
import os, sys
os.setpgid(0, 0)
sys.argv = ["oumi", "train", "-c", "config.yaml"]
from oumi.cli.main import run
run()
"""


@pytest.mark.parametrize("trainer", ["HF", pytest.param("TRL_SFT", marks=pytest.mark.slow)])
def test_signals_to_the_whole_process_group_leave_the_workers_for_the_last_step(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(tmp_path, num_rows=800, trainer_type=trainer, max_steps=200, dataloader_num_workers=1)
    config.to_yaml(tmp_path / "config.yaml")
    running = start_python("-c", IN_OWN_GROUP, folder=tmp_path)
    wait_for_steps(tmp_path / "out", 3)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # together they are one request
        os.killpg(running.pid, number)
    errors = running.communicate(timeout=60)[1]
    assert running.returncode == 75, errors
    assert len([*(tmp_path / "out").glob("checkpoint-*/MANIFEST.json")]) == 1
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.parametrize("is_ignored", [False, True], ids=["hung up", "nohup"])
def test_a_lost_connection_stops_the_run_unless_it_is_ignored(tmp_path: Path, is_ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with signal_in_pass(signal.SIGHUP, lambda is_training, number: is_training and number == 3):
            if is_ignored:
                assert train(tiny_config(tmp_path)).steps == 12
            else:
                with pytest.raises(PreemptedError):
                    train(tiny_config(tmp_path))
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
