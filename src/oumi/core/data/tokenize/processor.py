# SPDX-License-Identifier: Apache-2.0
"""The processor of a plan: what turns images into features, and their marks in a text into tokens."""

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

_VIDEOS = "video_preprocessor_config.json"
_OF_LOADING = ("use_fast", "backend", "padding_side")
_MISSING = {"patch_size": 14, "vision_feature_select_strategy": "default"}
"""What early LLaVA processors do not say of themselves."""


def load_processor(plan: ModelPlan, tokenizer: Any) -> Any:
    """Returns the processor of a model that sees images, around the given tokenizer.

    Its chat template is the tokenizer's if that has one, and else stays its own.

    Raises:
        ConfigError: The model brings none, it needs a library that is not here, or it takes no such argument.
    """
    name = str(resolve_asset(plan.processor_name or plan.name))
    try:
        with hub_errors("processor", plan.name), remote_code_refused(plan.name):
            processor = _load(name, plan, tokenizer)
    except ImportError as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"the processor of {plan.name} needs what is not installed: {told}") from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise ConfigError(f"model {plan.name}: brings no processor for images, so it cannot be trained on them")
    if not plan.trust_remote_code:
        _check_names(processor, tokenizer, plan.processor_kwargs)
    for key, value in _MISSING.items():
        if getattr(processor, key, value) is None:
            setattr(processor, key, value)
    processor.tokenizer = tokenizer
    return processor


def _check_names(processor: Any, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Raises ConfigError, with the nearest name, for an argument that neither the processor nor its parts have."""
    images = processor.image_processor
    known = {
        *vars(processor),
        *inspect.signature(type(processor).__init__).parameters,
        *vars(images),
        *getattr(getattr(images, "valid_kwargs", None), "__annotations__", {}),
        *tokenizer.init_kwargs,
        *_OF_LOADING,
    }
    for key in arguments:
        if key not in known:
            raise ConfigError(
                f"model.processor_kwargs.{key}: the processor has no such setting{did_you_mean(key, known)}"
            )


def save_processor(processor: Any, directory: Path) -> None:
    """Writes a processor for `AutoProcessor.from_pretrained`, its part for videos as it was found."""
    processor.save_pretrained(directory)
    if videos := getattr(processor, "video_settings", None):
        (directory / _VIDEOS).write_text(json.dumps(videos, indent=2) + "\n")


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
    # Only its part for videos is not to be had, and there are none.
    kind = AutoConfig.from_pretrained(name, revision=revision).model_type
    whole = getattr(transformers, PROCESSOR_MAPPING_NAMES[kind])
    without = type(whole.__name__, (WithoutVideos, whole), {})
    processor = without(image_processor=AutoImageProcessor.from_pretrained(name, **settings), tokenizer=tokenizer)
    processor.chat_template = tokenizer.chat_template
    processor.video_settings = _video_settings(name, revision)
    return processor


def _video_settings(name: str, revision: str | None) -> dict[str, Any] | None:
    for file, section in ((_VIDEOS, None), ("processor_config.json", "video_processor")):
        path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(path).read_text()) if path else {}
        if section is not None:
            found = found.get(section)
        if found:
            return dict(found)
    return None


class WithoutVideos:
    """Lets a processor stand without its part for videos."""

    video_settings: dict[str, Any] | None = None
    """Of that part, as the files of the model hold them."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Returns the parts of the processor."""
        parts: list[str] = super().get_attributes()  # type: ignore[misc]  # of the processor
        return [one for one in parts if one != "video_processor"]
