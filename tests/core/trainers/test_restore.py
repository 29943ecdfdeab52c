# SPDX-License-Identifier: Apache-2.0
"""A run that is put back to one of its checkpoints goes on from there as if it had never been further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oumi.core.run import Callback, Run, StepReport
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.resume import restore
from tests.runs import build, losses, tiny_config


class BackOnce(Callback):
    """Puts the run back to a checkpoint after a later step, once."""

    def __init__(self, checkpoint: Path, at_step: int) -> None:
        self.checkpoint = checkpoint
        self.at_step = at_step
        self.is_done = False

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]
        if run.state.step == self.at_step and not self.is_done:
            self.is_done = True
            restore(run, self.checkpoint)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", [{}, {"use_peft": True}, {"optimizer": "adafactor"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_step_back_changes_nothing(tmp_path: Path, kind: dict[str, Any], stream: bool) -> None:
    for name in ("whole", "back"):
        config = tiny_config(tmp_path, max_steps=8, save_steps=3, output_dir=str(tmp_path / name), **kind)
        config.data.train.stream = stream
        trainer = build(config, NativeTrainer)
        if name == "back":
            trainer.run.callbacks.all.append(BackOnce(tmp_path / name / "checkpoint-3", at_step=7))
        trainer.train()
        trainer.save(tmp_path / name)
    uninterrupted, back = losses(tmp_path / "whole"), losses(tmp_path / "back")
    assert back == uninterrupted[:7] + uninterrupted[3:]
    file = "adapter_model.safetensors" if kind.get("use_peft") else "model.safetensors"
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
