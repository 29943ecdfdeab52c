# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from oumi.core.configs.base import Complaint, NamedEnum, Params

ALL_LINEAR = "all-linear"
"""PEFT's word for all linear modules but the head."""
TAKEN_FROM_BASE = ("pissa", "olora", "loftq")
"""Initializations that begin with a part of the base weights."""


class PeftSaveMode(NamedEnum):
    """How a model with an adapter is saved."""

    ADAPTER_ONLY = "adapter_only"
    ADAPTER_AND_BASE_MODEL = "adapter_and_base_model"
    MERGED = "merged"


class LoraWeightInitialization(NamedEnum):
    """How the weights of an adapter are initialized."""

    DEFAULT = "default"
    RANDOM = "random"
    GAUSSIAN = "gaussian"
    EVA = "eva"
    PISA = "pissa"
    PISSA_NITER = "pissa_niter_[number of iters]"
    LOFTQ = "loftq"
    OLORA = "olora"
    ORTHOGONAL = "orthogonal"


PissaIterations = Annotated[str, Field(pattern=r"^pissa_niter_[1-9][0-9]*$")]
"""A fast decomposition with so many iterations."""


class PeftParams(Params):
    """LoRA and QLoRA; read when training.use_peft is true."""

    lora_r: PositiveInt = 8
    """Rank of the update."""
    lora_alpha: PositiveInt = 8
    """The update is scaled by alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the update."""
    lora_target_modules: list[str] | str | None = None
    """Modules with an adapter: a list of the ends of their paths, or a regular expression for whole paths; null takes
    PEFT's default, `all-linear` all linear modules."""
    lora_exclude_modules: list[str] | str | None = None
    """Regular expressions, or a single one, for whole paths of modules without an adapter."""
    lora_target_parameters: list[str] | None = None
    """Parameters with an adapter, such as the weights of experts."""
    lora_modules_to_save: list[str] | None = None
    """Modules of which all weights are trained."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    lora_init_weights: LoraWeightInitialization | PissaIterations = LoraWeightInitialization.DEFAULT
    """How the adapter is initialized; `pissa_niter_16` is PISSA with 16 iterations of a fast decomposition."""
    lora_task_type: str = "CAUSAL_LM"
    """PEFT's name of the task."""
    q_lora: bool = False
    """Quantize the base weights."""
    q_lora_bits: Literal[4, 8] = 4
    """Bits of a quantized weight."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "fp4"
    """Number format of a 4-bit weight."""
    llm_int8_skip_modules: list[str] | None = None
    """Modules that are not quantized, beside the head; to 4 bits or to 8."""
    use_bnb_nested_quant: bool = False
    """Quantize the scales too."""
    bnb_4bit_quant_storage: Literal["uint8", "int8", "float16", "bfloat16", "float32", "float64"] = "uint8"
    """Dtype of the tensors that contain the 4-bit weights."""
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype in which layers with 4-bit weights compute."""
    peft_save_mode: PeftSaveMode = PeftSaveMode.ADAPTER_ONLY
    """What is saved at the end."""
    lora_trainable_token_indices: list[NonNegativeInt] | None = None
    """Tokens whose embeddings are trained, as whole rows."""
    lora_use_dora: bool = False
    """Train the length of each row of a weight apart from its direction (DoRA)."""
    lora_use_rslora: bool = False
    """Scale the update by alpha / sqrt(r) (rank-stabilized LoRA)."""

    def complaints(self) -> Iterator[Complaint]:
        targets, excluded = self.lora_target_modules, self.lora_exclude_modules
        patterns = {"lora_target_modules": targets} if isinstance(targets, str) else {}
        if isinstance(excluded, str):
            patterns["lora_exclude_modules"] = excluded
        else:
            patterns |= {f"lora_exclude_modules[{i}]": pattern for i, pattern in enumerate(excluded or [])}
        problems = {key: problem for key, pattern in patterns.items() if (problem := _problem_of(pattern))}
        yield from problems.items()
        # Such as two groups of the same name.
        if excluded and not problems and (problem := _problem_of(alternatives(_listed(excluded)))):
            yield "lora_exclude_modules", problem

    @property
    def initialization(self) -> str:
        """Returns the name of the initialization in PEFT."""
        init = self.lora_init_weights
        return init if isinstance(init, str) else str(init.value)

    @property
    def keeps_base(self) -> bool:
        """Returns True if the base weights stay unchanged; otherwise a part of them moves into the adapter."""
        return not self.initialization.startswith(TAKEN_FROM_BASE)

    def to_lora(self) -> Any:
        """Returns the adapter as peft.LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(**self.lora_settings())

    def lora_settings(self) -> dict[str, Any]:
        """Returns the arguments of peft.LoraConfig."""
        # PEFT takes True for its default and False for random values.
        init: bool | str = self.initialization
        if init in ("default", "random"):
            init = init == "default"
        # PEFT reads `all-linear` only as text, and exclusions only as a single expression.
        targets, patterns = self.lora_target_modules, _listed(self.lora_exclude_modules)
        is_all = [name.lower() for name in _listed(targets)] == [ALL_LINEAR]
        return {
            "r": self.lora_r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": ALL_LINEAR if is_all else targets,
            "exclude_modules": alternatives(patterns) or None,
            "target_parameters": self.lora_target_parameters or None,
            "modules_to_save": self.lora_modules_to_save or None,
            "bias": self.lora_bias,
            "init_lora_weights": init,
            "task_type": str(self.lora_task_type),
            "trainable_token_indices": self.lora_trainable_token_indices or None,
            "use_dora": self.lora_use_dora,
            "use_rslora": self.lora_use_rslora,
        }


def _problem_of(pattern: str) -> str | None:
    """Returns what is wrong with a regular expression."""
    if not pattern:
        return "is empty; leave it out, or set null"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"'{pattern}' is not a regular expression: {error}"
    return None


def alternatives(patterns: Sequence[str]) -> str:
    """Returns a regular expression that matches what one of several does; the flags of each, as (?i), stay its own."""
    if len(patterns) < 2:
        return "".join(patterns)
    return "|".join(f"(?{flags}:{rest})" for flags, rest in map(_split_flags, patterns))


def _split_flags(pattern: str) -> tuple[str, str]:
    """Returns the flags at the start of a regular expression, which hold for all of it, and the rest."""
    flags = re.match(r"\(\?([aimsux]+)\)", pattern)
    return (flags[1], pattern[flags.end() :]) if flags else ("", pattern)


def _listed(names: list[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []
