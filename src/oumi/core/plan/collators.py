# SPDX-License-Identifier: Apache-2.0
"""Translates the collator of a config: which tokens it trains, and which of its arguments are read.

Collators of other trainers pad batches and search the text for templates. Here, trained tokens are found by rendering
the conversation, with the result that the collator's name and arguments describe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi.core.configs import DatasetSplitParams, TrainingConfig
from oumi.core.errors import did_you_mean
from oumi.core.plan.methods import METHODS, method_of

COMPLETIONS_ONLY = "text_completions_only_with_padding"
VISION_SFT = "vision_language_sft"
VISION = (VISION_SFT, "vision_language_with_padding")
_KEY = "data.train.collator_kwargs"
# Kind of an argument -> its type, and how messages describe it.
_KINDS: dict[str, tuple[type, str]] = {
    "text": (str, "text"),
    "count": (int, "a whole number, 1 or more"),
    "number": (int, "a whole number"),
    "flag": (bool, "true or false"),
    "section": (dict, "a section of keys"),
}
_OF_TEXT = {
    "max_length": "count", "truncation": "flag", "label_ignore_index": "number", "max_variable_sized_dims": "count",
    "debug": "flag", "pad_to_multiple_of": "count",
}  # fmt: skip
LANDMARKS = (
    "response_template", "instruction_template", "end_of_turn_template", "tool_response_template",
    "end_of_tool_response_template",
)  # fmt: skip
"""Arguments that name strings around turns, which the chat template must contain."""
ARGUMENTS: dict[str, dict[str, str]] = {
    "text_with_padding": _OF_TEXT,
    COMPLETIONS_ONLY: {
        **dict.fromkeys(LANDMARKS, "text"), "ignore_index": "number", "pad_to_multiple_of": "count",
    },
    "vision_language_with_padding": {**_OF_TEXT, "allow_multi_image_inputs": "flag", "main_image_feature": "text"},
    VISION_SFT: {
        "processor_name": "text", "processor_kwargs": "section", "max_length": "count", "truncation": "flag",
        "truncation_side": "text", "label_ignore_index": "number", "allow_multi_image_inputs": "flag",
        "trust_remote_code": "flag", "model_revision": "text", "train_on_completions_only": "flag",
        "response_template": "text", "instruction_template": "text", "process_individually": "flag",
        "pad_to_multiple_of": "count",
    },
}  # fmt: skip
"""The arguments that each collator takes, with the kind of their values."""
_NOT_READ = {
    "label_ignore_index": "a mask marks the trained tokens, not a label",
    "ignore_index": "a mask marks the trained tokens, not a label",
    "max_variable_sized_dims": "only the length of rows varies",
    "truncation": "rows that are too long are always truncated, unless data.train.truncation is set",
    "process_individually": "rows are always processed one by one",
    "main_image_feature": "the processor of the model names its features",
    "trust_remote_code": "model.trust_remote_code decides",
    "model_revision": "model.model_revision decides",
}
"""Arguments that are accepted and change nothing -> why."""


def train_on(config: TrainingConfig) -> str:
    """Returns which tokens are trained: `all`, `all_assistant_turns`, `final_assistant_turn` or `nothing`.

    The method decides first, then `train_target`, then the collator, and at last the default of the trainer.
    """
    split, trainer = config.data.train, config.training.trainer_type.spec
    if (of_method := METHODS[method_of(config.training)].train_on) is not None:
        return of_method
    kwargs = split.collator_kwargs
    if split.train_target is not None:
        return str(split.train_target.value)
    # With a start but no end of answers, these collators train from the last start to the end of the row.
    if split.collator_name == COMPLETIONS_ONLY:
        has_ends = "response_template" not in kwargs or {"end_of_turn_template", "instruction_template"} & kwargs.keys()
        return "all_assistant_turns" if has_ends else "final_assistant_turn"
    if split.collator_name == VISION_SFT and kwargs.get("train_on_completions_only"):
        return "all_assistant_turns" if "instruction_template" in kwargs else "final_assistant_turn"
    if split.collator_name is not None:
        return "all"
    return "all" if trainer.trains_prompts else "all_assistant_turns"


def landmarks(split: DatasetSplitParams) -> dict[str, str]:
    """Returns the strings around turns that the config names, by argument."""
    arguments = ARGUMENTS.get(split.collator_name or "", {})
    return {
        name: split.collator_kwargs[name] for name in LANDMARKS if name in split.collator_kwargs and name in arguments
    }


def max_length(split: DatasetSplitParams) -> int | None:
    """Returns the `max_length` of the collator in tokens, None if it has none."""
    length: int | None = split.collator_kwargs.get("max_length") if split.collator_name is not None else None
    return length


def truncation(split: DatasetSplitParams) -> str | None:
    """Returns how rows that are too long are truncated; None leaves it to the kind of row."""
    # `truncation` of the split overrides that of the collator.
    if split.truncation is not None:
        return split.truncation.value
    side: str | None = split.collator_kwargs.get("truncation_side") if split.collator_name == VISION_SFT else None
    return side


def processor(config: TrainingConfig) -> tuple[str | None, dict[str, Any]]:
    """Returns the name of the processor, None for that of the model, and its keyword arguments."""
    split = config.data.train
    kwargs = split.collator_kwargs if split.collator_name == VISION_SFT else {}
    return kwargs.get("processor_name"), {**config.model.processor_kwargs, **(kwargs.get("processor_kwargs") or {})}


def shows_example(config: TrainingConfig) -> bool:
    """Returns True if the first row is logged with its trained tokens."""
    split = config.data.train
    return config.training.log_examples or (
        split.collator_name is not None and bool(split.collator_kwargs.get("debug"))
    )


def wrong_arguments(split: DatasetSplitParams) -> Iterator[tuple[str, str]]:
    """Yields the problems of the collator's arguments, as pairs of key and message."""
    # Without a collator, the arguments of every one are valid; `unread_arguments` notes that they have no effect.
    every = {name: kind for arguments in ARGUMENTS.values() for name, kind in arguments.items()}
    arguments_of_collator = ARGUMENTS.get(split.collator_name or "", every)
    for name, value in split.collator_kwargs.items():
        if name == "train_target":
            yield f"{_KEY}.{name}", "write it beside collator_name, as data.train.train_target"
        elif name not in every:
            yield f"{_KEY}.{name}", f"no collator reads it{did_you_mean(name, every)}"
        elif name not in arguments_of_collator:
            takers = " and ".join(collator for collator, arguments in ARGUMENTS.items() if name in arguments)
            yield f"{_KEY}.{name}", f"{split.collator_name} does not take it; {takers} does"
        elif expected := _wrong_value(name, arguments_of_collator[name], value):
            yield f"{_KEY}.{name}", f"got {value!r}, must be {expected}"
    yield from _wrong_together(split)


def _wrong_value(name: str, kind: str, value: Any) -> str:
    """Returns the expected value if `value` is not valid, an empty string if it is."""
    type_, expected = _KINDS[kind]
    if name == "truncation_side" and value not in ("left", "right"):
        return "left or right"
    # bool is a subclass of int.
    is_valid = isinstance(value, type_) and (type_ is bool or not isinstance(value, bool))
    if is_valid and ((kind == "count" and value < 1) or (kind == "text" and not value)):
        is_valid = False
    return "" if is_valid else expected


def _wrong_together(split: DatasetSplitParams) -> Iterator[tuple[str, str]]:
    """Yields the problems of arguments that contradict what is always done, or need another one."""
    kwargs = split.collator_kwargs
    if kwargs.get("allow_multi_image_inputs") is False:
        yield f"{_KEY}.allow_multi_image_inputs", "rows are always trained with all of their images; leave this out"
    if kwargs.get("truncation") is False:
        yield (
            f"{_KEY}.truncation",
            "a row beyond model_max_length cannot be trained; data.train.truncation: REJECT refuses such rows",
        )
    # Strings that are of no use without others.
    if split.collator_name == COMPLETIONS_ONLY and split.train_target is None and "response_template" not in kwargs:
        for name in ("instruction_template", "end_of_turn_template"):
            if name in kwargs:
                yield f"{_KEY}.{name}", "needs response_template beside it, or data.train.train_target"
    both = ("tool_response_template", "end_of_tool_response_template")
    for name, other in (both, both[::-1]):
        if name in kwargs and other not in kwargs:
            yield f"{_KEY}.{name}", f"needs {other} beside it"
    if split.collator_name == VISION_SFT and not kwargs.get("train_on_completions_only"):
        for name in ("response_template", "instruction_template"):
            if name in kwargs:
                yield f"{_KEY}.{name}", "needs train_on_completions_only: true beside it"


def unread_arguments(config: TrainingConfig) -> dict[tuple[str, ...], str]:
    """Returns the arguments without an effect, as groups of keys with the reason."""
    split, is_ours = config.data.train, config.training.trainer_type.spec.is_native
    names = list(split.collator_kwargs)
    off: dict[tuple[str, ...], str] = {}
    # Collators of other trainers pad, so there it has an effect.
    if "pad_to_multiple_of" in names and is_ours:
        off[(f"{_KEY}.pad_to_multiple_of",)] = "batches are not padded"
    if split.collator_name is None and (rest := [name for name in names if name != "pad_to_multiple_of"]):
        off[tuple(f"{_KEY}.{name}" for name in rest)] = "no collator is set, see data.train.collator_name"
        return off
    for name, reason in _NOT_READ.items():
        if name in names:
            off[(f"{_KEY}.{name}",)] = reason
    return off
