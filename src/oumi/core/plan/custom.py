# SPDX-License-Identifier: Apache-2.0
"""Models that are classes of the user: which config names one, and what they cannot be combined with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import leaves
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.plan.methods import method_of
from oumi.core.plan.notes import changed_keys
from oumi.core.recipes import resolve_asset
from oumi.core.registry import MODELS, REGISTRY, RegistryType, import_extra_files
from oumi.core.system.filesystem import expanded

_TRAINERS = ("OUMI", "HF")
_REFUSED = {
    "training.use_peft", "model.adapter_model", "model.text_only", "model.attn_implementation",
    "model.enable_liger_kernel", "training.compile", "training.fp8_recipe",
    "training.enable_gradient_checkpointing", "training.eval_samples", "fsdp.enable_fsdp",
    "deepspeed.enable_deepspeed",
}  # fmt: skip
"""Keys for models of transformers alone."""


def is_registered(name: str) -> bool:
    """Returns True if a name in a config is that of a registered class of models."""
    import_extra_files()
    return name in MODELS


def custom_model(name: str) -> Any | None:
    """Returns the class of a registered model, or of the one that a directory holds; None for a model of transformers.

    Raises:
        ConfigError: The class of the directory is not registered.
    """
    if is_registered(name):
        return MODELS.get(name)
    if (kind := saved_class(name)) is None:
        return None
    classes = {part.__name__: part for part in REGISTRY.get_all(RegistryType.MODEL).values()}
    if kind not in classes:
        hint = did_you_mean(kind, classes)
        raise ConfigError(f"{name}: no class '{kind}' is registered{hint}; list its file in OUMI_EXTRA_DEPS_FILE")
    return classes[kind]


def saved_class(name: str) -> str | None:
    """Returns the name of the class whose model a directory holds; None for anything else."""
    path = expanded(str(resolve_asset(name))) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # reported where a model of transformers is read
        return None
    return str(config.get("model_type")) if isinstance(config, dict) and "init_kwargs" in config else None


def custom_model_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields the keys of a config that a model of the user does not support, or lacks."""
    model, training = config.model, config.training
    try:
        if custom_model(model.model_name) is None:
            return
    except ConfigError as error:
        yield "model.model_name", str(error)
        return
    name, trainer = model.model_name, training.trainer_type.name
    is_class = is_registered(name)
    if is_class and model.load_pretrained_weights:
        yield "model.load_pretrained_weights", f"{name} is a class without weights: set it to false"
    elif not is_class and not model.load_pretrained_weights:
        yield "model.load_pretrained_weights", "random weights: name the registered class of the model instead"
    if is_class and model.tokenizer_name is None:
        yield "model.tokenizer_name", f"required: the class {name} has no tokenizer"
    if model.model_max_length is None:
        yield "model.model_max_length", f"required: {name} does not say how long its rows may be"
    if trainer not in _TRAINERS:
        yield "training.trainer_type", f"{trainer} trains models of transformers only; use {' or '.join(_TRAINERS)}"
    elif method_of(training) != "next_token":
        yield "training.method", f"{method_of(training)}: not supported for a registered model; only next_token"
    if config.data.train.pack and trainer == "HF":
        yield "data.train.pack", f"{trainer} cannot keep the documents of a row apart in a registered model; use OUMI"
    if model.model_kwargs.get("disable_dropout"):
        yield "model.model_kwargs.disable_dropout", "for models of transformers; pass an argument of the class instead"
    values = leaves(config)
    for key in changed_keys(config):
        if key in _REFUSED and values[key]:
            yield key, "not supported for a registered model, only for models of transformers"
