# SPDX-License-Identifier: Apache-2.0
"""What a plan takes from the world. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oumi.core.plan.shapes import ModelShape


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is loaded; None where it is not known."""

    are_available: bool = False
    """The files are here."""
    num_parameters: int | None = None
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every weight that is a matrix."""
    stored_dtype: str | None = None
    max_positions: int | None = None
    tokenizer_length: int | None = None
    adapter_of: str | None = None
    """The files are an adapter's: the model that it belongs to."""
    commit: str | None = None
    """Of the Hub: exactly which version of the model is meant."""
    digest: str | None = None
    """Of the weights in a local directory."""
    sees_images: bool = False
    shape: ModelShape | None = None


@dataclass(frozen=True)
class Facts:
    """What a plan takes from the world: the machine, the data and the model as they are."""

    device: str
    device_name: str
    has_bf16: bool
    num_cpus: int
    memory_bytes: int
    free_bytes: int
    """On the file system of the output directory."""
    has_fp8: bool = False
    """The device multiplies 8-bit floating point in hardware."""
    has_tight_heap: bool = False
    """Freed memory is used again without holes, see `host.has_tight_heap`."""
    num_rows: int | None = None
    """Rows of the training set, None if they are only known after reading it."""
    model: ModelFacts = field(default_factory=ModelFacts)
    without: frozenset[str] = frozenset()
    """Means of speed that are switched off, to measure what each brings."""
    unread: tuple[str, ...] = ()
    """Keys in `dataset_kwargs` that the class of the data set takes, but no run reads."""
