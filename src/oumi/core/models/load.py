# SPDX-License-Identifier: Apache-2.0
"""Loads the model of a plan: from files, from the Hub, or with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_model
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from oumi.core.errors import ConfigError, RefusedError, did_you_mean
from oumi.core.hub import hub_errors, remote_code_refused
from oumi.core.log import logger
from oumi.core.models.model_parts import LANGUAGE_MODEL_KEYS, modules_of_part
from oumi.core.models.quantization import keep_layout, kept_modules, quantization_config, release_files
from oumi.core.models.vocabulary import add_tokens
from oumi.core.plan.frozen import PARTS
from oumi.core.plan.parts import ModelPlan
from oumi.core.recipes import resolve_asset

_MAX_LISTED = 3
"""Number of weights that a message lists by name."""


def load_model(plan: ModelPlan, device: torch.device, weights_from: Path | None = None, model_class: Any = None) -> Any:
    """Returns the model of a plan on `device`, in eval mode.

    Args:
        plan: The name, dtype and config overrides of the model.
        device: Device of the model; on `meta` it has no weights, and files are only checked.
        weights_from: A checkpoint whose weights replace those of the plan.
        model_class: Class of the model, None for the one that the config names.

    Raises:
        ConfigError: An unknown override, an unknown module to freeze, or no such model.
        RefusedError: The model needs code from the Hub, or its weights are pickled.
    """
    config = load_model_config(plan)
    auto_class = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    auto_class = model_class or auto_class
    if weights_from is not None and plan.added_tokens:
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, max(plan.added_tokens) + 1)
    dtype = None if plan.dtype == "auto" else getattr(torch, plan.dtype)
    options: dict[str, Any] = {"config": config, "trust_remote_code": plan.trust_remote_code}
    if plan.attention is not None:
        options["attn_implementation"] = plan.attention
    placed: dict[str, Any] = {"device_map": "meta"} if device.type == "meta" else {}
    if plan.text_only:
        options["key_mapping"] = LANGUAGE_MODEL_KEYS
    if plan.quantization is not None:
        options |= _quantized_while_loading(plan, config, auto_class)
        placed = {"device_map": {"": device}}
    with hub_errors("model", plan.name), remote_code_refused(plan.name):
        if weights_from is not None:
            model = _from_files(auto_class, str(weights_from), dtype=dtype or "auto", **options, **placed)
        elif plan.pretrained:
            name = str(resolve_asset(plan.name))
            options |= {"dtype": dtype or "auto", "revision": plan.revision}
            model = _from_files(auto_class, name, **options, **placed)
        else:
            model = _with_random_weights(auto_class, dtype or torch.float32, options, placed)
    if weights_from is None:
        add_tokens(model, plan.added_tokens)
    freeze(model, plan.freeze)
    if plan.quantization is not None:  # on its device already: transformers refuses to move 8-bit weights
        keep_layout(model)
        if device.type == "cpu":
            release_files(model)
        return model.eval()
    return model.to(device).eval()


def _quantized_while_loading(plan: ModelPlan, config: Any, auto_class: Any) -> dict[str, Any]:
    """Returns the arguments of transformers that quantize each weight as it is read, none for quantized files."""
    assert plan.quantization is not None
    if not plan.quantization.bits:
        return {}
    with torch.device("meta"):
        skeleton = auto_class.from_config(config, trust_remote_code=plan.trust_remote_code)
    return {"quantization_config": quantization_config(plan.quantization, kept_modules(plan.quantization, skeleton))}


def _with_random_weights(auto_class: Any, dtype: torch.dtype, options: dict[str, Any], placed: dict[str, Any]) -> Any:
    quantization, _ = options.pop("quantization_config", None), options.pop("key_mapping", None)
    model = auto_class.from_config(dtype=dtype, **options)
    if quantization is None:
        return model
    with TemporaryDirectory() as folder:  # transformers quantizes only what it reads
        # Not by `save_pretrained`, which writes on the first of several ranks only.
        save_model(model, f"{folder}/model.safetensors", {"format": "pt"})
        if model.can_generate():
            model.generation_config.to_json_file(f"{folder}/generation_config.json")
        return _from_files(auto_class, folder, dtype=dtype, quantization_config=quantization, **options, **placed)


def load_model_config(plan: ModelPlan) -> Any:
    """Returns the config of the model with the plan's overrides; raises ConfigError for an unknown key."""
    name = str(resolve_asset(plan.name))
    with hub_errors("model", plan.name), remote_code_refused(plan.name):
        config = AutoConfig.from_pretrained(name, revision=plan.revision, trust_remote_code=plan.trust_remote_code)
    if plan.text_only and hasattr(config, "vision_config"):
        family, config = config.model_type, config.get_text_config()
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(f"model.text_only: transformers has no class for the language model of {family} alone")
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
    # The names of dropout rates differ from family to family (`attention_dropout`, `resid_pdrop`), but all have "drop".
    if plan.disable_dropout:
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
    return config


def freeze(model: Any, module_names: tuple[str, ...]) -> None:
    """Freezes the weights of modules.

    Args:
        model: A transformers model.
        module_names: Paths of modules, patterns of paths with `*`, or names of parts, see `frozen.PARTS`.

    Raises:
        ConfigError: The model has no such module or part.
    """
    modules = dict(model.named_modules())
    for name in module_names:
        if name in modules:
            chosen = [modules[name]]
        elif any(character in name for character in "*?["):
            chosen = [module for path, module in modules.items() if fnmatchcase(path, name)]
        else:
            chosen = modules_of_part(model, name)
        if not chosen:
            hint = did_you_mean(name, [*PARTS, *modules])
            raise ConfigError(f"model.freeze_layers: the model has no module '{name}'{hint}")
        # What projects images into the language model is a part of its own, also within the encoder.
        kept = {id(p) for module in modules_of_part(model, "projector") for p in module.parameters()}
        kept = kept if name == "vision_encoder" else set()
        for parameter in (parameter for module in chosen for parameter in module.parameters()):
            if id(parameter) not in kept:
                parameter.requires_grad_(False)


def _from_files(auto_class: Any, name: str, **options: Any) -> Any:
    """Returns the model with the safetensors weights of a directory or a Hub repository."""
    try:
        model, report = auto_class.from_pretrained(
            name,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **options,
        )
    except OSError as error:
        files = [*Path(name).glob("*.bin"), *Path(name).glob("*.pt")] if Path(name).is_dir() else []
        if files:  # the error of transformers does not say that there are only pickled ones
            raise RefusedError(
                f"{name} has only pickled weights (pytorch_model.bin), which can run code when loaded. "
                "Convert them: load them where you trust them and call save_pretrained(...)."
            ) from error
        raise
    _check_loaded(name, report)
    return model


def _check_loaded(name: str, report: Mapping[str, Any]) -> None:
    """Raises ConfigError if a weight of the model would be random; logs the weights of the files that are not used."""
    wrong = [f"{key} has shape {tuple(saved)}, expected {tuple(expected)}"
             for key, saved, expected in sorted(report["mismatched_keys"])]  # fmt: skip
    wrong += [f"{key} is missing" for key in sorted(report["missing_keys"])]
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ConfigError(
            f"model {name}: its files do not match the config: {'; '.join(wrong[:_MAX_LISTED])}{more}. "
            "Check model.model_kwargs."
        )
    # Not an error: a text model may be loaded from the files of a vision-language model.
    if unused := sorted(report["unexpected_keys"]):
        more = f" and {len(unused) - _MAX_LISTED} more" if len(unused) > _MAX_LISTED else ""
        logger.warning(
            "model %s: weights that the model does not use: %s%s", name, ", ".join(unused[:_MAX_LISTED]), more
        )
