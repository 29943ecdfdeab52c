# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters through PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.plan.parts import LoraPlan, SavedSize


def add_lora(model: Any, plan: LoraPlan, base_name: str) -> Any:
    """Returns the model with a new LoRA adapter; only the adapter is trained."""
    from peft import LoraConfig, get_peft_model

    # Checked here, since PEFT reports only that nothing matched, and accepts a list with one match.
    modules = [name for name, _ in model.named_modules()]
    settings, targets = plan.settings, plan.settings["target_modules"]
    _check_names("peft.lora_target_modules", targets if isinstance(targets, list) else None, modules)
    _check_names("peft.lora_modules_to_save", settings["modules_to_save"], modules)
    parameters = [name for name, _ in model.named_parameters()]
    _check_names("peft.lora_target_parameters", settings["target_parameters"], parameters)
    try:
        wrapped = get_peft_model(model, LoraConfig(**settings))
    except ValueError as error:
        raise ConfigError(f"peft: {str(error).splitlines()[0]}") from error
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    return wrapped


def below_adapter(model: Any) -> Any:
    """Returns the transformers model inside a PEFT wrapper, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_names(key: str, names: Sequence[str] | None, paths: Sequence[str]) -> None:
    """Raises ConfigError unless every name is the end of one of the dotted paths, as PEFT matches them."""
    for name in names or ():
        if not any(f".{path}".endswith(f".{name}") for path in paths):
            hint = did_you_mean(name, {path.rpartition(".")[2] for path in paths} | set(paths))
            raise ConfigError(f"{key}: the model has no '{name}'{hint}")


def load_adapter(model: Any, source: str | Path, is_trained: bool, revision: str | None = None) -> Any:
    """Returns the model with the adapter from `source`, a directory or a Hub name; it is frozen unless `is_trained`."""
    from peft import PeftModel

    with hub_errors("adapter", str(source)):
        return PeftModel.from_pretrained(model, str(source), is_trainable=is_trained, revision=revision)


def is_adapted(model: Any) -> bool:
    """Returns True if the model carries a PEFT adapter."""
    return hasattr(model, "peft_config")


def saved_size(model: Any, mode: str = "ADAPTER_ONLY") -> SavedSize:
    """Returns the size in bytes of the weights that `ModelWriter` writes in a mode."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    trained = sum(p.nbytes for p in trainable)
    number_bytes = max((p.element_size() for p in trainable), default=4)
    num_bytes = sum(p.nbytes for p in model.parameters())
    if not is_adapted(model):
        return SavedSize(num_bytes, trained, number_bytes=number_bytes)
    return SavedSize(trained, trained, 0 if mode == "ADAPTER_ONLY" else num_bytes - trained, number_bytes)
