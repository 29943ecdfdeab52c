# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters, through PEFT, so that any tool of the Hub can load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.plan.parts import LoraPlan, Saved


def add_lora(model: Any, plan: LoraPlan, base_name: str) -> Any:
    """Returns the model with a new LoRA adapter; only the adapter is trained."""
    try:
        wrapped = get_peft_model(model, lora_config(plan))
    except ValueError as error:
        known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        wanted = plan.target_modules if isinstance(plan.target_modules, tuple) else ()
        hint = next((did_you_mean(name, known) for name in wanted if name not in known), "")
        raise ConfigError(f"peft.lora_target_modules: {str(error).splitlines()[0]}{hint}") from error
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    return wrapped


def lora_config(plan: LoraPlan) -> LoraConfig:
    """Returns the plan as PEFT wants it."""
    return LoraConfig(
        r=plan.r,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=list(plan.target_modules) if isinstance(plan.target_modules, tuple) else plan.target_modules,
        exclude_modules=plan.exclude_modules,
        target_parameters=list(plan.target_parameters) if plan.target_parameters else None,
        modules_to_save=list(plan.modules_to_save) if plan.modules_to_save else None,
        bias=plan.bias,  # type: ignore[arg-type]  # checked by the config
        init_lora_weights=plan.init,  # type: ignore[arg-type]  # checked by the config
        task_type=plan.task_type,
    )


def load_adapter(model: Any, source: str | Path, is_trained: bool) -> Any:
    """Returns the model with the adapter that lies at `source`, to be trained further or kept still."""
    with hub_errors("adapter", str(source)):
        return PeftModel.from_pretrained(model, str(source), is_trainable=is_trained)


def is_adapted(model: Any) -> bool:
    """Returns True if the model carries a PEFT adapter."""
    return isinstance(model, PeftModel)


def saved_of(model: Any) -> Saved:
    """Returns how large the weights are that `save_model` writes: the adapter alone if there is one."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return Saved(trained if is_adapted(model) else sum(p.nbytes for p in model.parameters()), trained)


def save_model(model: Any, directory: Path, mode: str = "ADAPTER_ONLY") -> None:
    """Writes the model as Hugging Face files.

    Args:
        model: A transformers model, or one with an adapter.
        directory: Where to; made if it is missing.
        mode: For an adapter: `ADAPTER_ONLY`, `ADAPTER_AND_BASE_MODEL` (the untouched base in `base/`), or
            `MERGED` (one plain model, and the adapter in `adapter/`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not is_adapted(model):
        model.save_pretrained(directory)
    elif mode == "MERGED":
        _save_adapter(model, directory / "adapter")
        model.merge_and_unload(safe_merge=True).save_pretrained(directory)
    else:
        _save_adapter(model, directory)
        if mode == "ADAPTER_AND_BASE_MODEL":
            model.unload().save_pretrained(directory / "base")


def _save_adapter(model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + "\n")
