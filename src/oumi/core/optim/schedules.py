# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules by their names in the config."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.plan.parts import SchedulePlan

SCHEDULES = {
    "linear": set[str](),
    "cosine": {"num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "cosine_with_min_lr": {"num_cycles", "min_lr", "min_lr_rate"},
    "constant": set[str](),
    "constant_with_warmup": set[str](),
    "polynomial": {"lr_end", "power"},
    "inverse_sqrt": {"timescale"},
    "warmup_stable_decay": {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"},
}  # fmt: skip
"""Names, and what `lr_scheduler_kwargs` may hold for each."""


def build_schedule(optimizer: torch.optim.Optimizer, plan: SchedulePlan, num_steps: int) -> LRScheduler:
    """Returns the schedule of the plan over `num_steps` optimizer steps."""
    check_schedule(plan)
    kwargs = dict(plan.kwargs)
    if plan.name == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & kwargs.keys():
        kwargs["min_lr_rate"] = 0.0
    num_warmup_steps = plan.num_warmup_steps(num_steps)
    if plan.name == "constant" and num_warmup_steps:
        return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps)
    return get_scheduler(plan.name, optimizer, num_warmup_steps, num_steps, scheduler_specific_kwargs=kwargs)


def check_schedule(plan: SchedulePlan) -> None:
    """Raises ConfigError on an unknown name or argument of a schedule."""
    if plan.name not in SCHEDULES:
        hint = did_you_mean(plan.name, SCHEDULES) or f"; known: {', '.join(SCHEDULES)}"
        raise ConfigError(f"training.lr_scheduler_type: unknown schedule '{plan.name}'{hint}")
    known = SCHEDULES[plan.name]
    for key in plan.kwargs:
        if key not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes no arguments"
            raise ConfigError(
                f"training.lr_scheduler_kwargs.{key}: unknown to '{plan.name}'{did_you_mean(key, known) or '; ' + takes}"
            )
