# SPDX-License-Identifier: Apache-2.0
"""Returns cached memory to the device."""

from __future__ import annotations

import torch

from oumi.core.run import Callback, Run, StepReport


class EmptyCache(Callback):
    """Empties the cache of torch's allocator every `every_steps` steps, so that other processes can use the memory."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]  # the native loop passes a Run
        if run.state.step % self._every_steps == 0:
            torch.accelerator.empty_cache()
