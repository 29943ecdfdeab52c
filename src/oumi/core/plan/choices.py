# SPDX-License-Identifier: Apache-2.0
"""The valid names of optimizers, schedules and attentions, which are text in a config and not an enum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oumi.core.configs.trainers import TrainerType
from oumi.core.errors import did_you_mean

# TRL and transformers are not imported for these lists, since both import torch.
OPTIMIZERS = (
    "adam",
    "adamw",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw",
    "paged_adamw_32bit",
    "sgd",
    "adafactor",
)
"""Optimizers of trainer OUMI."""

TRANSFORMERS_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_torch_4bit",
    "adamw_torch_8bit", "adamw_anyprecision", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "adafactor", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_8bit", "lion_32bit",
    "paged_lion_8bit", "paged_lion_32bit", "sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise", "lomo",
    "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
)  # fmt: skip
"""Optimizers of transformers; a test compares them with the installed version."""

RENAMED_OPTIMIZERS = {"adamw": "adamw_torch", "paged_adamw": "paged_adamw_32bit"}
"""Names of trainer OUMI that transformers does not have -> those of transformers."""

SCHEDULES: Mapping[str, frozenset[str]] = {
    "linear": frozenset(),
    "cosine": frozenset({"num_cycles"}),
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "polynomial": frozenset({"lr_end", "power"}),
    "inverse_sqrt": frozenset({"timescale"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"}
    ),
}
"""Schedules, and the valid keys of `lr_scheduler_kwargs` for each."""

TRANSFORMERS_SCHEDULES = ("reduce_lr_on_plateau", "cosine_warmup_with_min_lr", "greedy")
"""Schedules that only transformers has; a test compares them with the installed version."""

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Values of `model.attn_implementation`, beside the ids of kernels on the Hub."""
FLAT_ATTENTIONS = (None, "sdpa", "eager")
"""Those with which documents can be concatenated without padding: our attention computes the same result."""

NUM_RECOMPUTED = "recompute_num_layers"
"""Key of `training.gradient_checkpointing_kwargs`: how many of the first layers are recomputed; named as in Megatron.
"""
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
"""The other keys: the arguments of torch.utils.checkpoint."""

NO_LARGE_LAYER = "training.fp8_recipe: no layer of this model is large enough to gain by it; leave it out"

_SHAPES = {"warmup_type": ("linear", "cosine", "1-sqrt"), "decay_type": ("linear", "cosine", "1-sqrt")}
_LR_END = 1e-7
"""Default of `lr_end`, the final learning rate of `polynomial`, as in transformers."""


def gains_by_fp8(shape: Sequence[int], recipe: str) -> bool:
    """Returns True if a layer multiplies faster in 8 bits, by torchao's measurements on an H100.

    Args:
        shape: Shape of its weight, (outputs, inputs).
        recipe: Name of a recipe of torchao.
    """
    num_outputs, num_inputs = shape
    if num_outputs % 16 or num_inputs % 16:  # the kernels need multiples of 16
        return False
    # Row-wise scales cost more than a single one, so they pay only in larger layers.
    if recipe == "tensorwise":
        return num_outputs > 1024 or num_inputs > 4096
    return num_outputs > 2048 and num_inputs > 1024 and (num_outputs > 4096 or num_inputs > 2048)


def wrong_optimizer(name: str, trainer: TrainerType) -> str:
    """Returns what is wrong with the name of an optimizer, an empty string if nothing is."""
    theirs = (*TRANSFORMERS_OPTIMIZERS, *RENAMED_OPTIMIZERS)
    names, others = (OPTIMIZERS, theirs) if trainer.spec.is_native else (theirs, OPTIMIZERS)
    if name in names:
        return ""
    # A name of the other kind of trainers is no typing error, so the message says who lacks it.
    if name in others:
        return f"{trainer.name} has no optimizer '{name}'{did_you_mean(name, names)}"
    nearest = did_you_mean(name, names) or f"; {trainer.name} has {', '.join(names)}"
    return f"unknown optimizer '{name}'{nearest}"


def wrong_schedule(
    name: str, kwargs: Mapping[str, Any], learning_rate: float, trainer: TrainerType
) -> Iterator[tuple[str, str]]:
    """Yields the problems of a schedule and its arguments, as pairs of key and message."""
    # Other trainers pass the arguments of these on to transformers, which checks them.
    if name in TRANSFORMERS_SCHEDULES:
        if trainer.spec.is_native:
            yield (
                "training.lr_scheduler_type",
                f"{trainer.name} has no schedule '{name}'; known: {', '.join(SCHEDULES)}",
            )
        return
    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES) or "; known: " + ", ".join(SCHEDULES)
        yield "training.lr_scheduler_type", f"unknown schedule '{name}'{hint}"
        return
    arguments = SCHEDULES[name]
    for key, value in kwargs.items():
        place = f"training.lr_scheduler_kwargs.{key}"
        if key not in arguments:
            takes = f"; it takes {', '.join(sorted(arguments))}" if arguments else "; it takes no arguments"
            yield place, f"'{name}' has no argument '{key}'{did_you_mean(key, arguments) or takes}"
        elif key in _SHAPES:
            if value not in _SHAPES[key]:
                yield place, f"got '{value}', must be one of {', '.join(_SHAPES[key])}"
        elif not is_number(value) or value < 0:
            yield place, f"got {value!r}, must be a number >= 0"
    # Checks of several arguments together.
    if name == "warmup_stable_decay" and "num_decay_steps" not in kwargs:
        yield "training.lr_scheduler_kwargs", f"'{name}' needs num_decay_steps"
    if {"min_lr", "min_lr_rate"} <= kwargs.keys():
        yield "training.lr_scheduler_kwargs", "min_lr and min_lr_rate set the same value: leave one of them out"
    # transformers raises ValueError for this only when the schedule is made, after the model is loaded.
    lowest = kwargs.get("lr_end", _LR_END)
    if name == "polynomial" and is_number(lowest) and not lowest < learning_rate:
        yield "training.lr_scheduler_kwargs", f"lr_end, {lowest:g}, must be below training.learning_rate"


def is_number(value: Any) -> bool:
    """Returns True for an int or a float."""
    # bool is a subclass of int, but `true` in a config is no number.
    return isinstance(value, int | float) and not isinstance(value, bool)
