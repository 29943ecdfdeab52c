# SPDX-License-Identifier: Apache-2.0
"""Merges an adapter into its base model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer

from oumi.core.checkpoint.store import write_new
from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.hub import hub_errors
from oumi.core.inspect import gather_facts
from oumi.core.models.adapters import load_adapter
from oumi.core.models.load import load_model
from oumi.core.models.merging import write_with_base
from oumi.core.plan.plan import make_plan
from oumi.core.recipes import resolve_asset
from oumi.core.system.filesystem import expanded


def merge(adapter: str, output: Path, base: str | None = None) -> None:
    """Writes the model that an adapter and its base are together, in the dtype of the base, as Hugging Face files.

    Besides the weights of the base, which are mapped from their files, one layer is in memory at a time.

    Args:
        adapter: Directory or Hub name of the adapter.
        output: Directory of the merged model, which must not exist yet, or be empty.
        base: The base model, None for the one that the adapter names.

    Raises:
        ConfigError: There is no such adapter or base, or the base has no weights in full.
        OutputError: The output directory is not empty.
        ExportError: The merged model, read again, does not compute what the adapter does on its base.
    """
    write_new(output, lambda directory: write_merged(adapter, directory, base))


def write_merged(adapter: str, directory: Path, base: str | None = None) -> None:
    """Writes the model of `merge` into a directory that exists; raises as it does."""
    config = TrainingConfig.model_validate({"model": {"model_name": adapter}})
    facts = gather_facts(config, may_download=True, counts_rows=False)
    if facts.model.adapter_of is None:
        raise ConfigError(f"{adapter} is not an adapter: it contains no adapter_config.json")
    if facts.model.quantization is not None and base is None:
        raise ConfigError(
            f"the weights of {facts.model.adapter_of} are quantized by {facts.model.quantization}; name the model in "
            "full precision: oumi merge ADAPTER --output DIRECTORY --base MODEL"
        )
    plan = make_plan(config, facts).model
    # Of the files, so that they are mapped and not copied.
    plan = replace(plan, name=base or plan.name, revision=None if base else plan.revision, dtype="auto")
    adapted = load_adapter(load_model(plan, torch.device("cpu")), plan.adapter or adapter, is_trained=False)
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type.value
        raise ConfigError(f"{adapter} is a {kind} adapter, which changes no weights: it cannot be merged")
    write_with_base(adapted, plan, directory, "MERGED")
    shutil.rmtree(directory / "adapter")
    save_preprocessor(adapter, plan.name, directory, facts.model.sees_images)


def save_preprocessor(source: str, base: str, directory: Path, sees_images: bool) -> None:
    """Writes the tokenizer of a model, and the processor of one that sees images, into a directory.

    Args:
        source: The model, or the adapter.
        base: The model whose files are taken if `source` has none.
        directory: Where they are written.
        sees_images: The model has a processor.
    """
    for auto_class in (AutoTokenizer, *([AutoProcessor] if sees_images else [])):
        _load_beside(auto_class, source, base).save_pretrained(directory)


def _load_beside(auto_class: Any, adapter: str, base: str) -> Any:
    """Returns the tokenizer or the processor of an adapter if it has its own, else that of the base."""
    folder = expanded(str(resolve_asset(adapter)))
    has_own = folder.is_dir() and any(folder.glob("tokenizer*"))
    name = str(folder) if has_own else str(resolve_asset(base))
    with hub_errors("tokenizer", name):
        return auto_class.from_pretrained(name)
