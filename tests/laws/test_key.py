# SPDX-License-Identifier: Apache-2.0
"""Law 8: every key changes the plan or is refused; none is ignored in silence."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import keys_of, leaves
from oumi.core.configs.problems import semantic_problems, split_key
from oumi.core.errors import ConfigError
from oumi.core.plan import parts
from oumi.core.plan.facts import Facts
from oumi.core.plan.methods import METHODS
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.render import plan_json
from oumi.core.trainers.trl_methods import arguments

FACTS = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, has_fp8=True, num_rows=1000)
# Another value than the default, where one cannot be made up from the type.
SAMPLES: dict[str, Any] = {
    "training.lr_scheduler_type": "cosine", "training.optimizer": "sgd", "training.log_level": "debug",
    "training.dep_log_level": "info", "model.torch_dtype_str": "bfloat16", "peft.lora_task_type": "SEQ_CLS",
    "data.train.collator_name": "text_with_padding", "data.train.train_target": "FINAL_ASSISTANT_TURN",
    "data.train.mixture_strategy": "all_exhausted",
    "training.label_smoothing": 0.1,
    "training.lr_scheduler_kwargs": {"x": 1}, "training.max_steps": 7, "training.num_train_epochs": 2,
    "model.device_map": "cpu", "model.attn_implementation": "eager",
    "training.telemetry.telemetry_dir": "t", "peft.lora_dropout": 0.1, "peft.q_lora_bits": 8,
    "peft.lora_trainable_token_indices": [3],
    "deepspeed.train_batch_size": 32, "deepspeed.train_micro_batch_size_per_gpu": 8,
    "deepspeed.gradient_accumulation_steps": 8, "deepspeed.gradient_clipping": 0.5,
}  # fmt: skip
SAMPLES_OF_OTHERS = {"data.train.collator_name": "text_completions_only_with_padding"}
ZERO_IS_NONE = {"training.max_steps", "training.warmup_steps", "training.warmup_ratio"}
# Read by `dataset_for` and by the mixture; the tests of both hold what they do.
OF_DATASETS = {"dataset_name", "dataset_path", "split", "subset", "dataset_kwargs", "shuffle", "seed", "sample_count"}
OF_DATASETS |= {"mixture_proportion", "transform_num_workers"}
# Parts of the plan that the trainers of TRL and transformers only know by their own arguments.
BY_ARGUMENTS = {
    "steps", "optimizer", "schedule", "precision", "gradient_checkpointing", "empty_cache_every", "evaluation",
    "run_name", "speed",
}  # fmt: skip
SOURCE = Path(__file__).parents[2] / "src"
TRAINERS = ["OUMI", "TRL_SFT", "HF"]


@cache
def base_config(trainer: str, section: str = "") -> TrainingConfig:
    """Returns a config whose keys are changed; `section` is one that divides the model, and is on."""
    switch = f"{section}: {{enable_{section}: true}}\n" if section else ""
    return TrainingConfig.from_str(
        f"{switch}model: {{model_name: m}}\n"
        "data: {train: {datasets: [{dataset_name: a}]}, validation: {datasets: [{dataset_name: b}]}}\n"
        "training: {eval_strategy: steps, use_peft: true, enable_gradient_checkpointing: true, "
        f"trainer_type: {trainer}}}\n"
    )


KEYS = [key for key, _ in keys_of(TrainingConfig) if not key.startswith(("deepspeed.offload", "data.test"))]


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_is_done_or_is_refused_or_reported_as_not_read(key: str, trainer: str) -> None:
    name, section = key.rpartition(".")[2], key.partition(".")[0]
    section = section if section in ("fsdp", "deepspeed") else ""
    base = base_config(trainer, section)
    default = value_of(base, key)
    tried = 0
    for value in others(key, default, annotation_of(base, key), trainer):
        config = base.model_copy(deep=True)
        try:
            setattr(section_of(config, key), name, value)
        except ConfigError:
            continue  # refused as it is set
        tried += 1
        if semantic_problems(config) or refusals(config):
            continue
        try:
            actions = acted(config)
        except ConfigError:  # refused by the plan, which knows the machine
            continue
        if is_noted_as_not_read(config, key):
            continue
        if ".datasets[]." in key:
            assert name in OF_DATASETS, f"nothing reads {key}: {value!r}"
        assert actions != acted_by_default(trainer, section), f"{key}: {value!r} changes nothing"
    assert tried, f"no other value of {key} is known to this test"


@pytest.mark.parametrize("name", [name for name in vars(parts) if name.endswith("Plan")])
def test_every_value_of_the_plan_is_read_by_our_own_trainer(name: str) -> None:
    read = attributes_of_our_own_trainer()
    fields = {field.name for field in dataclasses.fields(getattr(parts, name))}
    assert fields - read - NOTED.get(name, set()) == set()


# What only the plan itself reads, or tells.
NOTED = {
    "ModelPlan": {"digest"},  # compared as part of the trajectory
    "StepsPlan": {"num_epochs", "max_steps", "num_rows", "accumulation", "ranks_per_node"},  # by its properties
    "PrecisionPlan": {"reason"},
    "BestPlan": {"is_greater_better"},  # by its method
    "SchedulePlan": {"warmup_steps", "warmup_ratio"},
    "DiskPlan": {
        "checkpoint_bytes",
        "num_checkpoints",
        "final_bytes",
        "free_bytes",
        "num_present",
        "temporary_bytes",
    },
    "MemoryPlan": {
        "process",
        "weights",
        "gradients",
        "activations",
        "available",
        "is_tight",
        "is_bound",
        "on_host",
        "uncounted",
    },
    "Plan": {"notes", "disk", "memory", "least_memory", "shape"},
}


@cache
def attributes_of_our_own_trainer() -> set[str]:
    """Returns the names of all attributes in the code that our own trainer imports, but for configs and plans."""
    methods = [spec.loss.partition(":")[0] for spec in METHODS.values() if spec.loss]
    modules = ["oumi.core.train", "oumi.core.trainers.native", "oumi.core.monitoring.trackers", *methods]
    return {
        node.attr
        for path in imported_by(modules)
        if "plan" not in path.parts and "configs" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }


def imported_by(modules: list[str]) -> list[Path]:
    """Returns the files of modules and of all that they import."""
    files: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
        if module in files or not path.exists():
            continue
        files[module] = path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("oumi."):
                waiting += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return list(files.values())


def acted(config: TrainingConfig) -> dict[str, Any]:
    """Returns what a config makes the trainer do."""
    plan = plan_of(config)
    record = {key: value for key, value in plan_json(plan).items() if key != "notes"}
    if config.training.trainer_type.name == "OUMI":
        return record
    ours = {key: value for key, value in record.items() if key not in BY_ARGUMENTS}
    return {**ours, "samples": plan.evaluation.num_samples, "arguments": arguments(plan)}


def plan_of(config: TrainingConfig) -> Plan:
    """Returns the plan of one rank, or of two machines with two ranks each if the config divides the model."""
    is_divided = config.fsdp.enable_fsdp or config.deepspeed.enable_deepspeed
    return make_plan(config, FACTS, *((4, 2) if is_divided else (1, 1)))


@cache
def acted_by_default(trainer: str, section: str) -> dict[str, Any]:
    return acted(base_config(trainer, section))


def is_noted_as_not_read(config: TrainingConfig, key: str) -> bool:
    named = key.replace("[]", "[0]")
    return any(
        note.startswith("not read:") and any(word.startswith(named) for word in re.split(r"[ ,:]+", note))
        for note in plan_of(config).notes
    )


def section_of(config: TrainingConfig, key: str) -> Any:
    section: Any = config
    for part in split_key(key.replace("[]", "[0]"))[:-1]:
        section = section[part] if isinstance(part, int) else getattr(section, str(part))
    return section


def value_of(config: TrainingConfig, key: str) -> Any:
    return getattr(section_of(config, key), key.rpartition(".")[2])


def annotation_of(config: TrainingConfig, key: str) -> Any:
    return type(section_of(config, key)).model_fields[key.rpartition(".")[2]].annotation


def others(key: str, default: Any, annotation: Any, trainer: str) -> Iterator[Any]:
    """Yields values that are not the default, those among them that Python takes for false."""
    samples = SAMPLES if trainer == "OUMI" else {**SAMPLES, **SAMPLES_OF_OTHERS}
    yield samples.get(key, another(default, annotation))
    for value in (0, 0.0):
        if value != default and type(value).__name__ in str(annotation) and key not in ZERO_IS_NONE:
            yield value
    if default:
        yield from (value for value in ("", [], {}, False) if type(value) is type(default))


def another(value: Any, annotation: Any) -> Any:
    """Returns a value of the same type that is not the given one."""
    if isinstance(value, Enum):
        return next(choice for choice in type(value) if choice is not value)
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
        choices = [choice for choice in get_args(annotation) if isinstance(choice, str) and choice != value]
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
    choices = [choice for choice in get_args(get_args(annotation)[0]) if isinstance(choice, str) and choice]
    return 3 if "int" in text else (choices or ["x"])[0]


def test_the_leaves_of_a_config_are_its_keys() -> None:
    keys = {key.replace("[]", "[0]") for key, _ in keys_of(TrainingConfig)}
    assert {key for key in leaves(base_config("OUMI")) if "offload" not in key and key != "data.test.datasets"} <= keys
