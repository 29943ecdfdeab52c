# SPDX-License-Identifier: Apache-2.0
"""Writes a model as Hugging Face files, with the settings that it was loaded with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from oumi.core.models.adapters import below_adapter, is_adapted
from oumi.core.models.initialization import begins_with_base, doubled, with_first_weights
from oumi.core.models.load import load_model_config
from oumi.core.plan.parts import ModelPlan

_KEPT_IN_CONFIG = "use_cache"
"""The only setting of generation that transformers accepts in the config of any model."""


class ModelWriter:
    """Writes a model with its config and its generation settings as they are when the writer is created.

    Training changes both for itself: it disables dropout and the cache, sets a pad token, adds a router loss.
    """

    def __init__(self, model: Any, plan: ModelPlan) -> None:
        self._model = model
        base = below_adapter(model)
        self._config = deepcopy(base.config)
        self._generation = deepcopy(base.generation_config) if base.can_generate() else None
        if plan.disable_dropout:
            original = load_model_config(replace(plan, disable_dropout=False))
            for key in [key for key in self._config.to_dict() if "drop" in key and hasattr(original, key)]:
                setattr(self._config, key, getattr(original, key))
        if self._generation is not None:
            _move_generation_settings(self._config, self._generation)

    def write(
        self, directory: Path, mode: str = "ADAPTER_ONLY", merge: Callable[[Any], None] = lambda model: None
    ) -> None:
        """Writes the model. Other modes than `ADAPTER_ONLY` take an adapter apart, so they end the training.

        Args:
            directory: Target directory, created if it is missing.
            mode: For an adapter: `ADAPTER_ONLY`, `ADAPTER_AND_BASE_MODEL` (also the unchanged base, in `base/`), or
                `MERGED` (a plain model, and the adapter in `adapter/`).
            merge: Merges layers of the adapter in its own way.
        """
        directory.mkdir(parents=True, exist_ok=True)
        model = self._model
        if not is_adapted(model):
            self._write_whole(model, directory)
        elif mode == "MERGED":
            _write_adapter(model, directory / "adapter")
            untie_adapted(below_adapter(model))
            merge(model)
            self._write_whole(model.merge_and_unload(safe_merge=True), directory)
        else:
            _write_adapter(model, directory)
            if mode == "ADAPTER_AND_BASE_MODEL":
                _restore_modules(model)
                self._write_whole(model.unload(), directory / "base")

    def _write_whole(self, model: Any, directory: Path) -> None:
        live = model.config, model.generation_config
        model.config = config = deepcopy(self._config)
        if getattr(config.get_text_config(), "tie_word_embeddings", False) and not _is_tied(model):
            # Otherwise loading would tie the trained weight to the other one.
            for section in (config, config.get_text_config()):
                section.tie_word_embeddings = False
        # transformers refuses to save what does not validate, also if the model was published with it.
        model.generation_config = GenerationConfig()
        try:
            model.save_pretrained(directory)
        finally:
            model.config, model.generation_config = live
        if self._generation is not None:
            self._generation.to_json_file(directory / "generation_config.json", keys_to_pop=["compile_config"])


def _move_generation_settings(config: Any, generation: Any) -> None:
    """Moves settings such as `temperature` from a model's config, where transformers refuses to save them."""
    declared = {field.name for field in dataclasses.fields(config)} | {_KEPT_IN_CONFIG}
    for key in (vars(config).keys() & GenerationConfig().to_dict().keys()) - declared:
        value = getattr(config, key)
        delattr(config, key)
        if getattr(generation, key, None) is None:
            setattr(generation, key, value)


def _write_adapter(model: Any, directory: Path) -> None:
    is_doubled = begins_with_base(model)
    weights = with_first_weights(model) if is_doubled else None
    # The base model keeps its embeddings, with which PEFT would otherwise compare those of the Hub.
    # The adapter alone that is trained: a trainer may keep another one to compare with.
    model.save_pretrained(directory, save_embedding_layers=False, selected_adapters=["default"], state_dict=weights)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = directory / "adapter_config.json"
    # Sorted by key, so that two adapters can be compared as text.
    config = json.loads(path.read_text())
    path.write_text(json.dumps(doubled(config) if is_doubled else config, indent=2, sort_keys=True) + "\n")


def untie_adapted(base: Any) -> None:
    """Gives the head a weight of its own if merging an adapter would also change the embedding, or the reverse."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = base.get_output_embeddings()
    if _is_tied(base) and any(isinstance(layer, BaseTunerLayer) for layer in (head, base.get_input_embeddings())):
        plain = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), plain.weight.requires_grad)


def _restore_modules(model: Any) -> None:
    """Puts the original modules back in place of those that were trained as a whole, which the adapter has."""
    from peft.utils import ModulesToSaveWrapper

    for module in list(model.modules()):
        if isinstance(module, ModulesToSaveWrapper):
            for name in module.modules_to_save:
                module.modules_to_save[name] = module.original_module


def _is_tied(base: Any) -> bool:
    """Returns True if embedding and head have the same weight."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    # A trained copy of a module is the one in use.
    return head is not None and embedding is not None and head.weight.data_ptr() == embedding.weight.data_ptr()
