# SPDX-License-Identifier: Apache-2.0
"""Law 8: every key changes the plan or is refused; none is ignored in silence."""

from __future__ import annotations

import ast
import dataclasses
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import keys_of, leaves
from oumi.core.configs.problems import semantic_problems, split_key
from oumi.core.errors import ConfigError
from oumi.core.plan import parts
from oumi.core.plan.parts import Facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.render import plan_json

FACTS = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, num_rows=1000)
# Another value than the default, where one cannot be made up from the type.
SAMPLES: dict[str, Any] = {
    "training.lr_scheduler_type": "cosine", "training.optimizer": "sgd", "training.log_level": "debug",
    "training.dep_log_level": "info", "model.torch_dtype_str": "bfloat16", "peft.lora_task_type": "SEQ_CLS",
    "data.train.collator_name": "text_completions_only_with_padding", "data.train.mixture_strategy": "all_exhausted",
    "training.lr_scheduler_kwargs": {"x": 1}, "training.max_steps": 7, "training.num_train_epochs": 2,
    "model.device_map": "cpu", "training.telemetry.telemetry_dir": "t", "peft.lora_dropout": 0.1, "peft.q_lora_bits": 8,
    "deepspeed.train_batch_size": 8, "deepspeed.train_micro_batch_size_per_gpu": 8,
    "deepspeed.gradient_accumulation_steps": 8, "deepspeed.gradient_clipping": 0.5,
}  # fmt: skip
# What says how a run is watched or which data it takes is read from the config itself.
SOURCE = Path(__file__).parents[2] / "src" / "oumi" / "core"


def base_config() -> TrainingConfig:
    return TrainingConfig.from_str(
        "model: {model_name: m}\n"
        "data: {train: {datasets: [{dataset_name: a}]}, validation: {datasets: [{dataset_name: b}]}}\n"
        "training: {trainer_type: OUMI, eval_strategy: steps, use_peft: true, enable_gradient_checkpointing: true}\n"
    )


KEYS = [
    key
    for key, _ in keys_of(TrainingConfig)
    if not key.startswith(("deepspeed.offload", "data.test", "data.validation"))
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_the_plan_or_is_refused(key: str) -> None:
    config = base_config()
    path = split_key(key.replace("[]", "[0]"))
    section: Any = config
    for part in path[:-1]:
        section = section[part] if isinstance(part, int) else getattr(section, part)
    name = str(path[-1])
    annotation = type(section).model_fields[name].annotation
    value = SAMPLES.get(key, another(getattr(section, name), annotation))
    try:
        setattr(section, name, value)
    except ConfigError:
        pytest.fail(f"no other value of {key} is known to this test")
    if semantic_problems(config) or refusals(config):
        return
    assert shown(config) != shown(base_config()), f"{key} changes nothing that a plan shows"


@pytest.mark.parametrize("name", [name for name in vars(parts) if name.endswith("Plan") and name != "Plan"])
def test_every_value_of_the_plan_is_read_by_what_acts(name: str) -> None:
    acting = [path for path in SOURCE.rglob("*.py") if path.parent.name not in ("configs",)]
    read = {
        node.attr
        for path in acting
        if path.name not in ("plan.py", "parts.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    fields = {field.name for field in dataclasses.fields(getattr(parts, name))}
    assert fields - read == set()


def shown(config: TrainingConfig) -> dict[str, Any]:
    return plan_json(make_plan(config, FACTS))


def another(value: Any, annotation: Any) -> Any:
    """Returns a value of the same type that is not the given one."""
    if isinstance(value, Enum):
        return next(one for one in type(value) if one is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return type(value)(value / 2) if isinstance(value, float) and value else value + 1
    if isinstance(value, dict):
        return {**value, "k": {"x": 1}}
    text = str(annotation)
    if isinstance(value, list):
        return [*value, value[0]] if value else ["x"]
    if isinstance(value, str):
        choices = [one for one in get_args(annotation) if one != value]
        return choices[0] if choices else f"{value}x"
    if "dict" in text:
        return {"k": "x"}
    if "list" in text:
        return ["x"]
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, Enum):
            return next(iter(inner))
    if "bool" in text:
        return True
    if "float" in text:
        return 0.5
    return 3 if "int" in text else next((one for one in get_args(get_args(annotation)[0]) if one), "x")


def test_the_leaves_of_a_config_are_its_keys() -> None:
    known = {key.replace("[]", "[0]") for key, _ in keys_of(TrainingConfig)}
    assert {key for key in leaves(base_config()) if "offload" not in key and key != "data.test.datasets"} <= known
