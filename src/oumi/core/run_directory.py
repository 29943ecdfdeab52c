# SPDX-License-Identifier: Apache-2.0
"""The records of a run beside its model: config, plan, environment."""

from __future__ import annotations

import json
import os

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import dump, leaves
from oumi.core.plan.parts import Plan
from oumi.core.plan.render import plan_json
from oumi.core.system.environment import describe_environment
from oumi.core.system.redact import redact


def write_records(plan: Plan, source: str | None) -> None:
    """Writes config, plan and environment of a run.

    Args:
        plan: Plan of the run.
        source: Text of the config file, written unchanged unless it contains a secret; None without a file.
    """
    config, output_dir = plan.config, plan.output_dir
    # The user's own text keeps its comments; with a secret in it, the resolved config is written instead.
    is_clean = source is not None and redact(source) == source
    text = source if source and is_clean else dump(config, hides_secrets=True)
    (output_dir / "config.yaml").write_text(text, encoding="utf-8")
    write_plan(plan)
    environment = {**describe_environment(), "seed": plan.seed, "data_seed": plan.data.seed}
    (output_dir / "environment.json").write_text(json.dumps(environment, indent=1, default=str) + "\n")
    folder = plan.logs.telemetry_dir
    # The names and formats that Oumi's other tools read.
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training_config.yaml").write_text(with_origins(config), encoding="utf-8")
        world = {
            "LOCAL_WORLD_SIZE": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            "WORLD_SIZE": plan.steps.world_size,
        }
        (folder / "world_size.json").write_text(json.dumps(world) + "\n")
        (folder / "devices_info.txt").write_text(f"{plan.device}: {plan.device_name}\n", encoding="utf-8")


def write_plan(plan: Plan) -> None:
    """Writes `plan.json`."""
    (plan.output_dir / "plan.json").write_text(json.dumps(plan_json(plan), indent=1) + "\n")


def with_origins(config: TrainingConfig) -> str:
    """Returns the resolved config as YAML, then a comment with the origin of each value that is not a default."""
    text = dump(config, hides_secrets=True)
    keys_set = config.keys_set()
    origins = [f"# {key}: {config.origin_of(key)}" for key in leaves(config) if key in keys_set]
    return "\n".join([text.rstrip("\n"), "# Where these values come from; all others are defaults:", *origins, ""])
