# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters through PEFT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch

from oumi.core.configs.peft import ALL_LINEAR, alternatives
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.log import logger
from oumi.core.models.initialization import begins_with_base
from oumi.core.models.quantization import is_quantized, num_numbers
from oumi.core.models.vocabulary import fit_to_adapter
from oumi.core.plan.lora import LoraPlan
from oumi.core.plan.resources import SavedSize

_ADDED_BY_PEFT = re.compile(r"\.(base_layer|original_module|modules_to_save\.default)(?=\.)")
"""Parts of the path of a base weight within an adapted model."""


def add_lora(model: Any, plan: LoraPlan, base_name: str) -> Any:
    """Returns the model with a new LoRA adapter; only the adapter is trained."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    settings = {**plan.settings, "exclude_modules": _excluded(model, plan.settings["exclude_modules"])}
    if plan.taken_from_base or plan.begins_with_inputs:  # set by `initialization` and `eva`
        settings["init_lora_weights"] = True
    modules, parameters = ([name for name, _ in named] for named in (model.named_modules(), model.named_parameters()))
    try:
        # PEFT takes the names that experts had before transformers stacked them, such as `w1`, for stacked weights.
        converted = LoraConfig(**settings)
        convert_peft_config_for_transformers(converted, model, None)
        # Checked here, since PEFT reports only that nothing matched, and accepts a list with one match.
        targets = settings["target_modules"]
        if isinstance(converted.target_modules, str) and targets != ALL_LINEAR:
            _check_pattern("peft.lora_target_modules", targets, modules)
        if isinstance(excluded := plan.settings["exclude_modules"], str):
            _check_pattern("peft.lora_exclude_modules", excluded, modules)
        listed = converted.target_modules if isinstance(targets, list) else None
        _check_names("peft.lora_target_modules", sorted(listed or ()), modules)
        if listed is not None and (skipped := _matches(set(targets) - set(listed), modules)):
            logger.warning("PEFT adapts the experts alone, not %s and the like, which have the same name", skipped[0])
        _check_names("peft.lora_modules_to_save", settings["modules_to_save"], modules)
        _check_not_quantized(settings["modules_to_save"], model)
        _check_names("peft.lora_target_parameters", sorted(converted.target_parameters or ()), parameters)
        wrapped = get_peft_model(model, LoraConfig(**settings))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_in_our_keys(str(error).splitlines()[0], model.config.model_type)) from error
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    _warn_of_frozen_experts(wrapped)
    return wrapped


def _in_our_keys(message: str, model_type: str) -> str:
    """Returns a message of PEFT, in the keys of the config where PEFT names its own arguments."""
    if message.startswith("Please specify `target_modules`"):
        return f"peft.lora_target_modules: PEFT has no default for {model_type}; name the modules, or set [all-linear]"
    if message.startswith("Target module "):  # whose text is that of a whole module
        name = re.split(r"\W", message.removeprefix("Target module "))[0]
        return f"peft.lora_target_modules: they match a module of class {name}, which takes no adapter"
    if "is incompatible with Mamba-based models" in message:
        return f"peft: {message} Of [all-linear], name it in peft.lora_exclude_modules, such as ['.*out_proj']."
    return f"peft: {message}"


def _excluded(model: Any, excluded: Sequence[str] | str | None) -> Sequence[str] | str | None:
    """Returns the modules without an adapter: those that the user names, and those that are linear by name only.

    PEFT takes every subclass of a linear layer for one, and fails on those that return more (Llama 4's router).
    """
    special = [name for name, module in model.named_modules() if _computes_more(module)]
    if not special:
        return excluded
    logger.info("without an adapter, since PEFT does not support their class: %s", ", ".join(special))
    if isinstance(excluded, str):  # a regular expression
        return alternatives([excluded, *map(re.escape, special)])
    return [*(excluded or ()), *special]


@torch.no_grad()
def _computes_more(module: Any) -> bool:
    """Returns True for a subclass of a linear layer in a transformers model that does not compute x W^T + b."""
    is_own = isinstance(module, torch.nn.Linear) and type(module).__module__.startswith("transformers.models.")
    if not is_own or type(module).forward is torch.nn.Linear.forward:
        return False
    x = torch.ones(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        result = module(x)
    except (RuntimeError, ValueError, TypeError):  # it takes another shape
        return True
    return not isinstance(result, torch.Tensor) or result.shape != (1, module.out_features)


def _warn_of_frozen_experts(adapted: Any) -> None:
    """Logs the share of the weights of an adapted model that are experts, and neither trained nor adapted."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    # A layer on stacked weights names the one that it adapts.
    with_adapter = {id(getattr(x.get_base_layer(), getattr(x, "parameter_name", "weight"), None)) for x in layers}
    num_frozen = num_weights = 0
    for name, weight in adapted.named_parameters():
        if ".original_module." in name:  # of `modules_to_save`, whose copy takes its place
            continue
        num_weights += weight.numel()
        is_frozen = not weight.requires_grad and id(weight) not in with_adapter
        if ".experts." in name and is_frozen and not name.endswith("bias"):  # which no adapter takes
            num_frozen += weight.numel()
    if num_frozen:
        logger.warning(
            "experts are frozen: %.0f %% of the weights have no adapter. To adapt them, name their stacked weights in "
            "a new adapter, such as peft.lora_target_parameters: [experts.gate_up_proj, experts.down_proj]",
            100 * num_frozen / num_weights,
        )


def base_weight_name(name: str) -> str:
    """Returns the name that a base weight of an adapted model has without the adapter."""
    return _ADDED_BY_PEFT.sub("", name)


def below_adapter(model: Any) -> Any:
    """Returns the transformers model inside a PEFT wrapper, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_names(key: str, names: Sequence[str] | None, paths: Sequence[str]) -> None:
    """Raises ConfigError unless every name is the end of one of the dotted paths, as PEFT matches them."""
    for name in names or ():
        if not _matches({name}, paths):
            hint = did_you_mean(name, {path.rpartition(".")[2] for path in paths} | set(paths))
            raise ConfigError(f"{key}: the model has no '{name}'{hint}")


def _check_pattern(key: str, pattern: str, paths: Sequence[str]) -> None:
    """Raises ConfigError unless a regular expression matches one of the dotted paths as a whole."""
    if not any(re.fullmatch(pattern, path) for path in paths):
        if _matches({pattern}, paths):
            raise ConfigError(
                f"{key}: '{pattern}' is the end of paths, as text it must match whole ones; write [{pattern}]"
            )
        nearest = max(paths, key=lambda path: SequenceMatcher(None, pattern, path).ratio())
        hint = did_you_mean(pattern, [ALL_LINEAR])
        raise ConfigError(f"{key}: '{pattern}' matches no path of a module as a whole; the nearest is {nearest}{hint}")


def _check_not_quantized(names: Sequence[str] | None, model: Any) -> None:
    """Raises ConfigError if a module that is trained as a whole has weights in few bits, which have no gradients."""
    quantized = [path for path, module in model.named_modules() if is_quantized(module)]
    for name in names or ():
        if any(f".{name}." in f".{path}." for path in quantized):
            raise ConfigError(
                f"peft.lora_modules_to_save: the weights of {name} are quantized, so they cannot be trained; "
                "name it in peft.llm_int8_skip_modules, too"
            )


def _matches(names: set[str], paths: Sequence[str]) -> list[str]:
    return [path for path in paths if any(f".{path}".endswith(f".{name}") for name in names)]


def load_adapter(model: Any, source: str | Path, is_trained: bool, revision: str | None = None) -> Any:
    """Returns the model with the adapter from `source`, a directory or a Hub name; it is frozen unless `is_trained`.

    Raises:
        ConfigError: There is no such adapter, or it is one of another model.
    """
    from peft import PeftModel

    fit_to_adapter(model, str(source), revision)
    old_names = getattr(model, "_checkpoint_conversion_mapping", {})
    with hub_errors("adapter", str(source)):
        adapted = PeftModel.from_pretrained(model, str(source), is_trainable=is_trained, revision=revision)
        # Once more, since `from_pretrained` does not say which weights the adapter and the model have alone.
        result = adapted.load_adapter(
            str(source), "default", is_trainable=is_trained, revision=revision, key_mapping=old_names
        )
    kinds = {"the model has no place for": result.unexpected_keys, "it has no": result.missing_keys}
    for reason, keys in kinds.items():
        if wrong := sorted(key for key in keys if ".lora_" in key):
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ConfigError(f"adapter {source} is not one of this model: {reason} {wrong[0]}{more}")
    if is_trained:
        _warn_of_frozen_experts(adapted)
    return adapted


def is_adapted(model: Any) -> bool:
    """Returns True if the model carries a PEFT adapter."""
    return hasattr(model, "peft_config")


def adapter_names(model: Any) -> set[str]:
    """Returns the names of the weights that the files of a model's adapter contain, whether trained or frozen."""
    from peft import get_peft_model_state_dict

    weights = dict(model.named_parameters())
    kept = {id(weight) for weight in get_peft_model_state_dict(model, weights, save_embedding_layers=False).values()}
    return {name for name, weight in weights.items() if id(weight) in kept}


def saved_size(model: Any, mode: str = "ADAPTER_ONLY") -> SavedSize:
    """Returns the size in bytes of the weights that a mode writes, with quantized base weights in full."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    trained = sum(p.nbytes for p in trainable)
    number_bytes = max((p.element_size() for p in trainable), default=4)
    size_of_number = model.dtype.itemsize
    num_bytes = sum(
        num_numbers(p) * size_of_number if hasattr(p, "quant_state") or p.dtype == torch.int8 else p.nbytes
        for p in model.parameters()
    )
    if not is_adapted(model):
        return SavedSize(num_bytes, trained, number_bytes=number_bytes)
    weights = dict(model.named_parameters())
    names = adapter_names(model)
    adapter = sum(weights[name].nbytes for name in names)
    # What the adapter began with is a second half of its files.
    doubled = sum(weights[name].nbytes for name in names if ".lora_" in name) if begins_with_base(model) else 0
    base = 0 if mode == "ADAPTER_ONLY" else num_bytes - adapter
    return SavedSize(adapter + doubled, trained, base, number_bytes)
