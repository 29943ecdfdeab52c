# SPDX-License-Identifier: Apache-2.0
"""Names that a config may choose among, where they are not an enum of the config itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oumi.core.errors import did_you_mean

OPTIMIZERS = (
    "adam",
    "adamw",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw",
    "paged_adamw_32bit",
    "sgd",
    "adafactor",
)
"""Optimizers of our own trainer; transformers checks the names of its own."""

SCHEDULES: Mapping[str, frozenset[str]] = {
    "linear": frozenset(),
    "cosine": frozenset({"num_cycles"}),
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "polynomial": frozenset({"lr_end", "power"}),
    "inverse_sqrt": frozenset({"timescale"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"}
    ),
}
"""Schedules, and what `lr_scheduler_kwargs` may hold for each."""


def wrong_optimizer(name: str) -> str:
    """Returns what is wrong with the name of an optimizer, or an empty string."""
    if name in OPTIMIZERS:
        return ""
    return f"unknown optimizer '{name}'{did_you_mean(name, OPTIMIZERS) or '; known: ' + ', '.join(OPTIMIZERS)}"


def wrong_schedule(name: str, kwargs: Mapping[str, Any]) -> str:
    """Returns what is wrong with a schedule and its arguments, or an empty string."""
    if name not in SCHEDULES:
        return f"unknown schedule '{name}'{did_you_mean(name, SCHEDULES) or '; known: ' + ', '.join(SCHEDULES)}"
    known = SCHEDULES[name]
    for key in kwargs:
        if key not in known:
            takes = f"; it takes {', '.join(sorted(known))}" if known else "; it takes no arguments"
            return f"'{name}' has no argument '{key}'{did_you_mean(key, known) or takes}"
    return ""
