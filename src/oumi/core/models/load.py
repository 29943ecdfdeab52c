# SPDX-License-Identifier: Apache-2.0
"""A model as the plan names it: from files, from the Hub, or with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from oumi.core.errors import ConfigError, RefusedError, did_you_mean
from oumi.core.hub import hub_errors, remote_code_refused
from oumi.core.log import logger
from oumi.core.plan.parts import ModelPlan
from oumi.core.recipes import resolve_asset

_MAX_LISTED = 3
"""Weights that are named when some do not fit."""


def load_model(plan: ModelPlan, device: torch.device, weights_from: Path | None = None) -> Any:
    """Returns the model of a plan on `device`, in eval mode.

    Args:
        plan: Which model, in which dtype, with which changes to its config.
        device: Of the model.
        weights_from: A checkpoint whose weights are taken instead of the named ones.

    Raises:
        ConfigError: An unknown override, an unknown module to freeze, or no such model.
        RefusedError: The model needs code of the Hub, or its weights are pickled.
    """
    config = load_model_config(plan)
    with hub_errors("model", plan.name), remote_code_refused(plan.name):
        if plan.pretrained or weights_from is not None:
            model = _from_files(plan, config, weights_from)
        else:
            model = _kind_of(config).from_config(
                config,
                dtype=dtype_of(plan.dtype) or torch.float32,
                trust_remote_code=plan.trust_remote_code,
                **_attention(plan),
            )
    # Before an adapter is added, whose weights stay trained.
    freeze(model, plan.freeze)
    return model.to(device).eval()


def load_model_config(plan: ModelPlan) -> Any:
    """Returns the config of the model, with the plan's overrides; a name it does not have is an error."""
    name = str(resolve_asset(plan.name))
    with hub_errors("model", plan.name), remote_code_refused(plan.name):
        config = AutoConfig.from_pretrained(name, revision=plan.revision, trust_remote_code=plan.trust_remote_code)
    # Some families map a common name to their own, such as hidden_size to n_embd.
    settings = set(config.to_dict()) | set(getattr(config, "attribute_map", {}))
    for key, value in plan.config_overrides.items():
        if key == "dtype":
            raise ConfigError("model.model_kwargs.dtype: set model.torch_dtype_str")
        if key not in settings:
            raise ConfigError(f"model.model_kwargs.{key}: {plan.name} has no such setting{did_you_mean(key, settings)}")
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(f"model.model_kwargs.{key}: {reason}") from error
    # Families name their kinds of dropout differently; all names have this in common.
    if plan.disable_dropout:
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
    return config


def dtype_of(name: str) -> torch.dtype | None:
    """Returns the torch dtype called `name`, None for `auto`."""
    return None if name == "auto" else getattr(torch, name)


def freeze(model: Any, module_names: tuple[str, ...]) -> None:
    """Stops the weights of the named modules from moving; an unknown name is an error."""
    modules = dict(model.named_modules())
    for name in module_names:
        if name not in modules:
            raise ConfigError(f"model.freeze_layers: the model has no module '{name}'{did_you_mean(name, modules)}")
        modules[name].requires_grad_(False)


def _kind_of(config: Any) -> Any:
    """Returns the class that loads a model: one that sees images has a part for that."""
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def _from_files(plan: ModelPlan, config: Any, weights_from: Path | None) -> Any:
    name = str(weights_from or resolve_asset(plan.name))
    try:
        model, report = _kind_of(config).from_pretrained(
            name,
            config=config,
            revision=None if weights_from else plan.revision,
            dtype=dtype_of(plan.dtype) or "auto",
            trust_remote_code=plan.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **_attention(plan),
        )
    except OSError as error:
        files = [*Path(name).glob("*.bin"), *Path(name).glob("*.pt")] if Path(name).is_dir() else []
        if files:  # it does not say why it found no safetensors
            raise RefusedError(
                f"{name} holds pickled weights only (pytorch_model.bin), which can run code when loaded. "
                "Convert them: load them where you trust them and call save_pretrained(...)."
            ) from error
        raise
    _check_loaded(name, report)
    return model


def _check_loaded(name: str, report: Mapping[str, Any]) -> None:
    """Raises ConfigError if a weight of the model would be random; logs the weights of the files that are left over."""
    wrong = [f"{key} has the shape {tuple(saved)}, the model wants {tuple(expected)}"
             for key, saved, expected in sorted(report["mismatched_keys"])]  # fmt: skip
    wrong += [f"{key} is missing" for key in sorted(report["missing_keys"])]
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ConfigError(
            f"model {name}: its files do not fit the model: {'; '.join(wrong[:_MAX_LISTED])}{more}. "
            "Is it changed by model.model_kwargs?"
        )
    # No error: a text model may be loaded from the files of one that sees images.
    if left := sorted(report["unexpected_keys"]):
        more = f" and {len(left) - _MAX_LISTED} more" if len(left) > _MAX_LISTED else ""
        logger.warning(
            "model %s: weights that the model has no place for: %s%s", name, ", ".join(left[:_MAX_LISTED]), more
        )


def _attention(plan: ModelPlan) -> dict[str, Any]:
    return {} if plan.attention is None else {"attn_implementation": plan.attention}
