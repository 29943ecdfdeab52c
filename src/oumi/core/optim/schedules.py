# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules by their names in the config."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from oumi.core.plan.parts import SchedulePlan


def build_schedule(optimizer: torch.optim.Optimizer, plan: SchedulePlan, num_steps: int) -> LRScheduler:
    """Returns the schedule of the plan over `num_steps` optimizer steps."""
    kwargs = dict(plan.kwargs)
    if plan.name == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & kwargs.keys():
        kwargs["min_lr_rate"] = 0.0
    num_warmup_steps = plan.num_warmup_steps(num_steps)
    if plan.name == "constant" and num_warmup_steps:
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps)
    # Where warmup takes every step, nothing is left to divide the rest by.
    num_steps = max(num_steps, num_warmup_steps + 1)
    return get_scheduler(plan.name, optimizer, num_warmup_steps, num_steps, scheduler_specific_kwargs=kwargs)
