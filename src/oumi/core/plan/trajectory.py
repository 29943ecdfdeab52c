# SPDX-License-Identifier: Apache-2.0
"""The values of a plan that determine the trained weights, so that a run is not resumed with others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.plan.parts import Plan
from oumi.core.plan.render import plan_json

_DECISIVE = {
    "trainer": None,
    "method": ("name", "settings"),
    "seed": None,
    "deterministic": None,
    "model": None,
    "lora": None,
    "sharding": ("compute_dtype",),
    "accelerate": ("computes_in_bf16",),
    "data": ("train_on", "seed"),
    "steps": ("rows_per_step", "num_epochs", "max_steps"),
    "loss": None,
    "optimizer": None,
    "schedule": None,
    "precision": ("autocast", "fp8"),
}
"""Parts of the plan, and which of their values; None for all. How a step is divided into micro-batches is not one of
them, since it changes the weights only by rounding."""


def trajectory(plan: Plan) -> dict[str, str]:
    """Returns the values of a plan that determine its weights, as JSON text by dotted name."""
    record = plan_json(plan)
    chosen: dict[str, Any] = {}
    for part, names in _DECISIVE.items():
        value = record[part]
        chosen[part] = value if names is None or value is None else {name: value[name] for name in names}
    del chosen["model"]["added_tokens"]  # which follow from the tokenizer and its arguments
    if chosen["steps"]["max_steps"] is not None:
        del chosen["steps"]["num_epochs"]  # not read with max_steps
    # Only what decides the rows: the data sets themselves are compared by their contents elsewhere.
    mixture = record["data"]["train"]
    chosen["mixture"] = {name: mixture[name] for name in ("strategy", "pack", "stream", "truncation")}
    chosen["best"] = best = record["checkpoints"]["best"]
    if best is not None:  # it is one of these steps
        chosen["evaluation"] = {name: record["evaluation"][name] for name in ("every_steps", "every_epoch")}
    chosen["trainer_kwargs"] = dict(plan.config.training.trainer_kwargs)
    return dict(_flat(chosen, ""))


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns `name: old -> new` for each value that differs."""
    names = sorted(before.keys() | now.keys())
    # A value that an older version did not record counts as null, the default of new keys.
    return [
        f"{name}: {before.get(name, 'not set')} -> {now.get(name, 'not set')}"
        for name in names
        if before.get(name, "null") != now.get(name, "null")
    ]


def shared_values(plan: Plan, data: str) -> dict[str, str]:
    """Returns what every rank must have alike: what decides the weights, and the steps at which ranks act together."""
    record = plan_json(plan)
    parts = {name: record[name] for name in ("steps", "checkpoints", "evaluation")}
    return {**trajectory(plan), **dict(_flat(parts, "")), "data": json.dumps(data)}


def check_same_on_ranks(values: Sequence[Mapping[str, str]]) -> None:
    """Raises ConfigError if ranks have different plans or rows; takes the `shared_values` of each rank."""
    for rank, values_of_rank in enumerate(values):
        if changed := differences(values[0], values_of_rank):
            raise ConfigError(
                f"ranks 0 and {rank} would train different runs (rank 0 -> rank {rank}):\n  "
                + "\n  ".join(changed)
                + "\nStart all ranks with the same config, overrides and data. Where a value is 'auto', and their "
                "machines differ, set it."
            )


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(value)
