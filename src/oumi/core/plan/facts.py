# SPDX-License-Identifier: Apache-2.0
"""What a plan depends on beside the config: machine, data and model. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oumi.core.plan.shapes import ModelShape


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model from its files, before it is loaded; None where a fact is unknown."""

    are_available: bool = False
    """The config of the model is on this machine."""
    num_parameters: int | None = None
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every two-dimensional weight, by name."""
    stored_dtype: str | None = None
    max_positions: int | None = None
    tokenizer_length: int | None = None
    adapter_of: str | None = None
    """The base model if the files are those of an adapter."""
    commit: str | None = None
    """Commit of the model on the Hub."""
    digest: str | None = None
    """Digest of the weights in a local directory."""
    sees_images: bool = False
    quantization: str | None = None
    """Method by which the weights in the files are quantized."""
    mixers: Mapping[str, int] = field(default_factory=dict)
    """How many layers mix tokens by a state or a convolution, by the name of their kind."""
    shape: ModelShape | None = None


@dataclass(frozen=True)
class Facts:
    """Facts about the machine, the data and the model."""

    device: str
    device_name: str
    has_bf16: bool
    num_cpus: int
    memory_bytes: int
    free_bytes: int
    """Free space on the file system of the output directory."""
    has_fp8: bool = False
    """The device multiplies 8-bit floats in hardware."""
    has_tight_heap: bool = False
    """Freed memory is reused without fragmentation, see `host.has_tight_heap`."""
    num_rows: int | None = None
    """Rows of the training set, None if they are only known after reading it."""
    model: ModelFacts = field(default_factory=ModelFacts)
    without: frozenset[str] = frozenset()
    """Optimizations that are disabled, to measure their effect."""
    missing: frozenset[str] = frozenset()
    """Packages that the config needs and that are not installed."""
    unread: tuple[str, ...] = ()
    """Keys in `dataset_kwargs` that the class of the data set accepts, but no run reads."""
