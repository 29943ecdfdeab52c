# SPDX-License-Identifier: Apache-2.0
"""A step of a whole run on a GPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from oumi.core.engine.step import take_step
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, tiny_config


@pytest.mark.gpu
def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    run = build(tiny_config(tmp_path, mixed_precision_dtype="BF16"), NativeTrainer).run
    run.model.train()
    steps = run.loader.from_step(0)
    for _ in range(2):  # the first ones make workspaces and the optimizer's states
        run.callbacks.step_end(run, take_step(run, next(steps)))
    micro_batches = next(steps)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run.callbacks.step_end(run, take_step(run, micro_batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in seen if "synchronizing" in str(one.message)]
    assert len(waits) == 1, "the loss and the norm of the gradients, before any weight moves"
