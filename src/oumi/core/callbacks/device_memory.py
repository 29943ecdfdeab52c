# SPDX-License-Identifier: Apache-2.0
"""Gives memory back to the device."""

from __future__ import annotations

import torch

from oumi.core.run import Callback, Run, StepReport


class EmptyCache(Callback):
    """Every so many steps, returns what the allocator keeps for later to the device, where others can have it."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]  # our own loop shows a whole Run
        if run.state.step % self._every_steps == 0:
            torch.accelerator.empty_cache()
