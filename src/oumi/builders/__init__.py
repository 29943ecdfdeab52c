# SPDX-License-Identifier: Apache-2.0
"""Parts built from sections of a config, for notebooks."""

from __future__ import annotations

from typing import Any

from oumi.core.configs import DataParams, ModelParams, PeftParams, TrainingConfig, TrainingParams
from oumi.core.configs.data import DatasetParams
from oumi.core.plan.facts import Facts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.system import host

__all__ = [
    "build_chat_template",
    "build_lr_scheduler",
    "build_model",
    "build_optimizer",
    "build_peft_model",
    "build_tokenizer",
]


def build_tokenizer(model_params: ModelParams) -> Any:
    """Returns the tokenizer of a model, with its chat template."""
    from oumi.core.data.tokenize.chat_template import chat_template_for
    from oumi.core.data.tokenize.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(_plan(model_params).model)
    tokenizer.chat_template = chat_template_for(tokenizer, model_params.chat_template)
    return tokenizer


def build_model(model_params: ModelParams, peft_params: PeftParams | None = None) -> Any:
    """Returns a model, with the adapter that it names, or a new one if one is described."""
    import torch

    from oumi.core.models.build import build_model as build

    plan = _plan(model_params, peft=peft_params)
    return build(plan, torch.device(plan.device))


def build_peft_model(base_model: Any, use_gradient_checkpointing: bool, peft_params: PeftParams) -> Any:
    """Returns a model with a new adapter; only the adapter is trained."""
    from oumi.core.models.adapters import add_lora

    plan = _plan(ModelParams(model_name=base_model.name_or_path or "-"), peft=peft_params)
    assert plan.lora is not None, "an adapter is described"
    model = add_lora(base_model, plan.lora, plan.model.name)
    if use_gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def build_chat_template(template_name: str) -> str:
    """Returns the bundled chat template of that name."""
    from oumi.core.data.tokenize.chat_template import bundled_template

    return bundled_template(template_name)


def build_optimizer(model: Any, config: TrainingParams) -> Any:
    """Returns the optimizer that a training section describes, over the weights of a model."""
    from oumi.core.optim.optimizers import build_optimizer as build

    return build(model, _plan(ModelParams(model_name="-"), training=config).optimizer)


def build_lr_scheduler(optimizer: Any, training_params: TrainingParams, num_training_steps: int) -> Any:
    """Returns the learning-rate schedule that a training section describes, over that many optimizer steps."""
    from oumi.core.optim.schedules import build_schedule

    plan = _plan(ModelParams(model_name="-"), training=training_params)
    return build_schedule(optimizer, plan.schedule, num_training_steps)


def _plan(model: ModelParams, peft: PeftParams | None = None, training: TrainingParams | None = None) -> Plan:
    training = (training or TrainingParams()).model_copy(update={"use_peft": peft is not None})
    data = DataParams()
    data.train.datasets = [DatasetParams(dataset_name="-")]
    config = TrainingConfig(data=data, model=model, training=training, peft=peft or PeftParams())
    machine = host.describe_host()
    facts = Facts(
        machine.device,
        machine.device_name,
        machine.has_bf16,
        machine.num_cpus,
        machine.memory_bytes,
        free_bytes=0,
    )
    return make_plan(config, facts)
