# SPDX-License-Identifier: Apache-2.0
"""Loads and saves the processor of a plan, which computes the features of images and their tokens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file

from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.hub import hub_errors, remote_code_refused
from oumi.core.plan.parts import ModelPlan
from oumi.core.recipes import resolve_asset

_VIDEO_FILE = "video_preprocessor_config.json"
_LOADING_ARGUMENTS = ("use_fast", "backend", "padding_side")
"""Arguments of `from_pretrained` that no part of a processor declares."""
_LLAVA_DEFAULTS = {"patch_size": 14, "vision_feature_select_strategy": "default"}
"""Attributes that the files of early LLaVA models leave unset."""


def load_processor(plan: ModelPlan, tokenizer: Any) -> Any:
    """Returns the processor of a model that supports images, with `tokenizer` as its tokenizer.

    Raises:
        ConfigError: The model has no processor, a package that it needs is not installed, or it does not have an
            argument of the config.
    """
    name = str(resolve_asset(plan.processor_name or plan.name))
    try:
        with hub_errors("processor", plan.name), remote_code_refused(plan.name):
            processor = _load(name, plan, tokenizer)
    except ImportError as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"the processor of {plan.name} needs a package that is not installed: {message}") from error
    # For a model without images, `AutoProcessor` returns the tokenizer.
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise ConfigError(f"model {plan.name}: has no processor for images, so it cannot be trained on images")
    # Remote code may read arguments that no signature declares.
    if not plan.trust_remote_code:
        _check_arguments(processor, tokenizer, plan.processor_kwargs)
    for key, value in _LLAVA_DEFAULTS.items():
        if getattr(processor, key, value) is None:
            setattr(processor, key, value)
    processor.tokenizer = tokenizer
    return processor


def save_processor(processor: Any, directory: Path) -> None:
    """Writes a processor for `AutoProcessor.from_pretrained`, with the settings for videos that it was loaded with."""
    processor.save_pretrained(directory)
    if videos := getattr(processor, "video_settings", None):
        (directory / _VIDEO_FILE).write_text(json.dumps(videos, indent=2) + "\n")


def _check_arguments(processor: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError for an argument that neither the processor nor a part of it has."""
    # transformers would ignore it without a warning.
    images = processor.image_processor
    names = {
        *vars(processor),
        *inspect.signature(type(processor).__init__).parameters,
        *vars(images),
        *getattr(getattr(images, "valid_kwargs", None), "__annotations__", {}),
        *tokenizer.init_kwargs,
        *_LOADING_ARGUMENTS,
    }
    for key in arguments:
        if key not in names:
            raise ConfigError(
                f"model.processor_kwargs.{key}: the processor has no such setting{did_you_mean(key, names)}"
            )


def _load(name: str, plan: ModelPlan, tokenizer: Any) -> Any:
    revision = None if plan.processor_name else plan.revision
    settings = {
        "revision": revision,
        "trust_remote_code": plan.trust_remote_code,
        **plan.processor_kwargs,
    }
    try:
        return AutoProcessor.from_pretrained(name, **settings)
    except (ImportError, OSError) as error:
        if not any(sign in str(error).lower() for sign in ("torchvision", "video processor")):
            raise
    # Only its part for videos cannot be loaded, and no method trains on videos. So it is built without that part.
    kind = AutoConfig.from_pretrained(name, revision=revision).model_type
    original = getattr(transformers, PROCESSOR_MAPPING_NAMES[kind])
    # The name stays, since it is written to the saved files.
    reduced = type(original.__name__, (WithoutVideos, original), {})
    processor = reduced(image_processor=AutoImageProcessor.from_pretrained(name, **settings), tokenizer=tokenizer)
    processor.chat_template = tokenizer.chat_template
    processor.video_settings = _video_settings(name, revision)
    return processor


def _video_settings(name: str, revision: str | None) -> dict[str, Any] | None:
    # Newer models have these settings in a section of the processor's file.
    for file, section in ((_VIDEO_FILE, None), ("processor_config.json", "video_processor")):
        path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        if section is not None:
            settings = settings.get(section)
        if settings:
            return dict(settings)
    return None


class WithoutVideos:
    """Mixin for a processor whose part for videos cannot be loaded."""

    video_settings: dict[str, Any] | None = None
    """Settings of that part from the files of the model."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Returns the names of the parts of the processor."""
        parts: list[str] = super().get_attributes()  # type: ignore[misc]  # of the processor
        return [part for part in parts if part != "video_processor"]
