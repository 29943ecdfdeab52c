# SPDX-License-Identifier: Apache-2.0
"""The parts of a plan for adapters, and for the quantized weights below them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oumi.core.configs.peft import TAKEN_FROM_BASE


def is_target(targets: Sequence[str] | str, path: str) -> bool:
    """Returns True if PEFT adapts the module of a path: text is a pattern of whole paths, a list has ends of paths."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(f".{path}".endswith(f".{name}") for name in targets)


@dataclass(frozen=True)
class QuantizationPlan:
    """The frozen weights below an adapter in few bits, by bitsandbytes (QLoRA, arXiv 2305.14314)."""

    bits: int
    """4 or 8."""
    number_format: str
    """`nf4`, `fp4` or `int8`."""
    nested: bool
    """The scales of 4-bit weights are quantized, too."""
    storage: str
    """Dtype of the tensors that contain 4-bit weights."""
    compute_dtype: str
    """Dtype in which layers with 4-bit weights compute."""
    skipped: tuple[str, ...]
    """Modules that are not quantized, beside the head."""


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA adapter, and how it is saved."""

    settings: Mapping[str, Any]
    """Arguments of peft.LoraConfig."""
    save_mode: str
    """Name of a PeftSaveMode."""
    frozen: tuple[str, ...] = ()
    """Modules whose adapters stay as they begin, see `frozen.is_frozen`."""

    @property
    def taken_from_base(self) -> str | None:
        """Returns the initialization that begins with a part of the base weights, None for any other."""
        init = self.settings.get("init_lora_weights", True)
        return init if isinstance(init, str) and init.startswith(TAKEN_FROM_BASE) else None

    @property
    def begins_with_inputs(self) -> bool:
        """Returns True for the initialization that needs a forward pass over rows of the run (EVA)."""
        return bool(self.settings.get("init_lora_weights", True) == "eva")
