# SPDX-License-Identifier: Apache-2.0
"""The state of an optimizer is restored as it was saved, also where states share a tensor."""

from __future__ import annotations

from pathlib import Path

import torch

from oumi.core.checkpoint.state import load_state, save_state
from oumi.core.engine.step import take_step
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, tiny_config


def test_a_tensor_that_several_states_share_is_written_once_and_shared_again(tmp_path: Path) -> None:
    run = build(tiny_config(tmp_path), NativeTrainer).run
    take_step(run, next(run.loader.from_step(0)))
    table = torch.arange(256.0)  # as 8-bit optimizers keep one to look values up
    for state in run.optimizer.state.values():
        state["table"] = table
    save_state(run, tmp_path, [], {})
    size = (tmp_path / "state" / "optimizer.safetensors").stat().st_size
    load_state(run, tmp_path)
    tables = [state["table"] for state in run.optimizer.state.values()]
    assert len(tables) > 2
    assert all(torch.equal(restored, table) for restored in tables)
    assert len({restored.data_ptr() for restored in tables}) == 1
    for i, state in enumerate(run.optimizer.state.values()):
        state["table"] = table + i
    (tmp_path / "other").mkdir()
    save_state(run, tmp_path / "other", [], {})
    more = (tmp_path / "other" / "state" / "optimizer.safetensors").stat().st_size
    assert more - size > 4 * 256 * (len(tables) - 2)
