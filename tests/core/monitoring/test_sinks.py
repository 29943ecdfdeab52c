# SPDX-License-Identifier: Apache-2.0
"""The output of a run: on a terminal, in a pipe, in TensorBoard; and the same numbers everywhere."""

from __future__ import annotations

import json
import os
import pty
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oumi.core.monitoring.console import step_line
from oumi.core.train import train
from tests.fork_server import start_python
from tests.runs import tiny_config
from tests.tiny import write_pairs


def records(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def tensorboard(output_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(output_dir / "tensorboard"))
    events.Reload()
    return events


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_tensorboard_holds_the_reported_steps_and_the_validation(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(
        tmp_path, trainer_type=trainer, max_steps=6, logging_steps=2, eval_strategy="steps", eval_steps=3
    )
    config.data.validation = config.data.train.model_copy(deep=True)
    config.training.enable_tensorboard = True
    train(config)
    events = tensorboard(tmp_path / "out")
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    written = {record["step"]: record["loss"] for record in records(tmp_path / "out") if "loss" in record}
    assert list(shown) == [2, 4, 6]
    assert shown == pytest.approx({step: written[step] for step in shown}, rel=1e-6)
    assert [event.step for event in events.Scalars("eval/loss")] == [3, 6]


def test_tensorboard_shows_only_the_last_run_of_a_directory(tmp_path: Path) -> None:
    for num_steps in (3, 2):
        train(tiny_config(tmp_path, max_steps=num_steps, logging_steps=1, enable_tensorboard=True))
    assert [event.step for event in tensorboard(tmp_path / "out").Scalars("train/loss")] == [1, 2]


def test_the_metrics_of_a_method_reach_every_sink_under_their_own_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, method="dpo", max_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=2)
    config.data.train.datasets[0].dataset_name = "preference_pairs_jsonl"
    config.data.train.datasets[0].dataset_path = str(write_pairs(tmp_path / "pairs.jsonl"))
    config.data.validation = config.data.train.model_copy(deep=True)
    config.training.enable_tensorboard = True
    train(config)
    first, second, validation = records(tmp_path / "out")
    printed, events = capsys.readouterr().err, tensorboard(tmp_path / "out")
    names = [name for name in first if "/" in name]
    assert "rewards/accuracies" in names
    for name in names:
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx([first[name], second[name]])
        assert [event.value for event in events.Scalars(f"eval/{name}")] == pytest.approx([validation[f"eval_{name}"]])
    rewards = [name for name in names if name.startswith("rewards/")]
    assert f"GB  {'  '.join(f'{name} {second[name]:.3g}' for name in rewards)}  0:00 left" in printed
    assert "entropy" in second
    assert {f"train/{name}" for name in first} - {"train/step"} <= set(events.Tags()["scalars"])


def test_a_line_ends_with_the_metrics_of_the_method() -> None:
    record = {
        "step": 3, "loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 1000, "peak_memory_bytes": 2e9,
        "rewards/accuracies": 0.75, "rewards/margins": 0.01234,
    }  # fmt: skip
    line = step_line(record, 10, ("rewards/accuracies", "rewards/margins"))
    assert line == (
        "step 3/10  loss 0.5000  lr 1.00e-04  1,000 tok/s  2.00 GB  rewards/accuracies 0.75  rewards/margins 0.0123"
    )


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_terminal_shows_a_live_line_that_fits_it(tmp_path: Path, method: str) -> None:
    config = tiny_config(tmp_path, max_steps=30, logging_steps=10)
    if method == "dpo":
        config.training.method = method
        config.data.train.datasets[0].dataset_name = "preference_pairs_jsonl"
        config.data.train.datasets[0].dataset_path = str(write_pairs(tmp_path / "pairs.jsonl"))
    config.to_yaml(tmp_path / "run.yaml")
    master, slave = pty.openpty()
    screen = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = ("-m", "oumi", "train", "-c", str(tmp_path / "run.yaml"))
    process = start_python(*command, terminal=os.ttyname(slave), **screen)
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux reports that the other end is closed
            break
        output += part
    process.communicate()
    assert process.returncode == 0
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    live = [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ")]
    assert live[-1].startswith("step 30/30  loss ")
    assert re.search(r"lr \d\.\d\de-\d\d  [\d,]+ tok/s  \d+% peak  \d\.\d\d GB", live[-1])
    assert max(map(len, live)) <= 80


def test_a_pipe_shows_a_line_every_so_many_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path, max_steps=7, logging_steps=3, logging_first_step=True))
    steps = re.findall(
        r"^step (\d+)/7  loss \d+\.\d{4}  lr \S+  \S+ tok/s .* left$", capsys.readouterr().err, re.MULTILINE
    )
    assert steps == ["1", "3", "6", "7"]
