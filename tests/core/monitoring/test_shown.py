# SPDX-License-Identifier: Apache-2.0
"""What a run shows: on a terminal, in a pipe, in TensorBoard; and the same numbers everywhere."""

from __future__ import annotations

import json
import os
import pty
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oumi.core.train import train
from tests.fork_server import start_python
from tests.runs import tiny_config


def records(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_tensorboard_holds_the_steps_that_are_told_and_the_validation(tmp_path: Path, trainer: str) -> None:
    config = tiny_config(
        tmp_path, trainer_type=trainer, max_steps=6, logging_steps=2, eval_strategy="steps", eval_steps=3
    )
    config.data.validation = config.data.train.model_copy(deep=True)
    config.training.enable_tensorboard = True
    train(config)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    shown = {one.step: one.value for one in events.Scalars("train/loss")}
    written = {one["step"]: one["loss"] for one in records(tmp_path / "out") if "loss" in one}
    assert list(shown) == [2, 4, 6]
    assert shown == pytest.approx({step: written[step] for step in shown}, rel=1e-6)
    assert [one.step for one in events.Scalars("eval/loss")] == [3, 6]


def test_a_terminal_shows_one_live_line_that_fits_it(tmp_path: Path) -> None:
    tiny_config(tmp_path, max_steps=30, logging_steps=10).to_yaml(tmp_path / "run.yaml")
    master, slave = pty.openpty()
    screen = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = ("-m", "oumi", "train", "-c", str(tmp_path / "run.yaml"))
    running = start_python(*command, terminal=os.ttyname(slave), **screen)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        shown += part
    running.communicate()
    assert running.returncode == 0
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    live = [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ")]
    assert live[-1].startswith("step 30/30  loss ")
    assert re.search(r"lr \d\.\d\de-\d\d  [\d,]+ tok/s  \d+% peak  \d\.\d\d GB", live[-1])
    assert max(map(len, live)) <= 80


def test_a_pipe_shows_a_line_every_so_many_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_config(tmp_path, max_steps=7, logging_steps=3, logging_first_step=True))
    told = re.findall(
        r"^step (\d+)/7  loss \d+\.\d{4}  lr \S+  \S+ tok/s .* left$", capsys.readouterr().err, re.MULTILINE
    )
    assert told == ["1", "3", "6", "7"]
