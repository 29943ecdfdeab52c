# SPDX-License-Identifier: Apache-2.0
"""Names that a config may choose among, where they are not an enum of the config itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oumi.core.configs.trainers import TrainerType
from oumi.core.errors import did_you_mean

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
"""Optimizers of our own trainer."""

TRANSFORMERS_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_torch_4bit",
    "adamw_torch_8bit", "adamw_anyprecision", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "adafactor", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_8bit", "lion_32bit",
    "paged_lion_8bit", "paged_lion_32bit", "sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise", "lomo",
    "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
)  # fmt: skip
"""Optimizers of transformers; a test holds them to the installed version."""

RENAMED_OPTIMIZERS = {"adamw": "adamw_torch", "paged_adamw": "paged_adamw_32bit"}
"""Names of our own trainer that transformers does not know -> its own."""

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
"""Schedules, and what `lr_scheduler_kwargs` may hold for each."""

TRANSFORMERS_SCHEDULES = ("reduce_lr_on_plateau", "cosine_warmup_with_min_lr", "greedy")
"""Those that only transformers has; a test holds them to the installed version."""

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""What `model.attn_implementation` may be, beside kernels of the Hub by their id."""
FLAT_ATTENTIONS = (None, "sdpa", "eager")
"""Those with which documents may stand end to end: ours compute the same."""

NUM_RECOMPUTED = "recompute_num_layers"
"""Of `training.gradient_checkpointing_kwargs`: how many layers compute again, the first ones; Megatron has the word."""
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
"""The rest of it: what torch.utils.checkpoint takes."""

NO_LARGE_LAYER = "training.fp8_recipe: no layer of this model is large enough to gain by it; leave it out"

_SHAPES = {"warmup_type": ("linear", "cosine", "1-sqrt"), "decay_type": ("linear", "cosine", "1-sqrt")}
_LR_END = 1e-7
"""Where `polynomial` ends, if nothing is said."""


def gains_by_fp8(shape: Sequence[int], recipe: str) -> bool:
    """Returns True if a layer multiplies faster in 8 bits, by torchao's measurements on an H100.

    Args:
        shape: Of its weight.
        recipe: Of torchao.
    """
    num_outputs, num_inputs = shape
    if num_outputs % 16 or num_inputs % 16:  # which the kernels ask for
        return False
    if recipe == "tensorwise":
        return num_outputs > 1024 or num_inputs > 4096
    return num_outputs > 2048 and num_inputs > 1024 and (num_outputs > 4096 or num_inputs > 2048)


def wrong_optimizer(name: str, trainer: TrainerType) -> str:
    """Returns what is wrong with the name of an optimizer, or an empty string."""
    theirs = (*TRANSFORMERS_OPTIMIZERS, *RENAMED_OPTIMIZERS)
    names, others = (OPTIMIZERS, theirs) if trainer.spec.is_native else (theirs, OPTIMIZERS)
    if name in names:
        return ""
    if name in others:
        return f"{trainer.name} has no optimizer '{name}'{did_you_mean(name, names)}"
    nearest = did_you_mean(name, names) or f"; {trainer.name} has {', '.join(names)}"
    return f"unknown optimizer '{name}'{nearest}"


def wrong_schedule(
    name: str, kwargs: Mapping[str, Any], learning_rate: float, trainer: TrainerType
) -> Iterator[tuple[str, str]]:
    """Yields what is wrong with a schedule and its arguments: the key, and what about it."""
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
    for key, value in kwargs.items():
        if message := _wrong_argument(name, key, value):
            yield f"training.lr_scheduler_kwargs.{key}", message
    if name == "warmup_stable_decay" and "num_decay_steps" not in kwargs:
        yield "training.lr_scheduler_kwargs", f"'{name}' needs num_decay_steps"
    if {"min_lr", "min_lr_rate"} <= kwargs.keys():
        yield "training.lr_scheduler_kwargs", "min_lr and min_lr_rate say the same: give one of them"
    lowest = kwargs.get("lr_end", _LR_END)
    if name == "polynomial" and is_number(lowest) and not lowest < learning_rate:
        yield "training.lr_scheduler_kwargs", f"lr_end, {lowest:g}, must be below training.learning_rate"


def _wrong_argument(name: str, key: str, value: Any) -> str:
    arguments = SCHEDULES[name]
    if key not in arguments:
        takes = f"; it takes {', '.join(sorted(arguments))}" if arguments else "; it takes no arguments"
        return f"'{name}' has no argument '{key}'{did_you_mean(key, arguments) or takes}"
    if key in _SHAPES:
        return "" if value in _SHAPES[key] else f"'{value}': wanted one of {', '.join(_SHAPES[key])}"
    return "" if is_number(value) and value >= 0 else f"{value!r}: wanted a number, 0 or more"


def is_number(value: Any) -> bool:
    """Returns True for a whole number or a fraction; a flag is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
