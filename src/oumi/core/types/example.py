# SPDX-License-Identifier: Apache-2.0
"""A row on its way to a batch, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands, so that every refusal can name it."""

    dataset: str
    """Name of the data set, as the config gives it."""
    path: str
    """File, or `name[split]` of a Hub data set."""
    line: int
    """Line in the file (from 1); of a Parquet file or a split of the Hub, the index of the row (from 0)."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it was read."""

    value: Any
    source: Source


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that cannot be used, and why."""

    source: Source
    reason: str
    excerpt: str = ""
    """The first characters of the record, control characters escaped."""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" + (f": {self.excerpt}" if self.excerpt else "")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids `[T]`, which of them are trained, and where they came from."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    """True where the token itself is to be predicted (from the tokens before it)."""
    source: Source


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and what is to follow it, both as plain text."""

    prompt: str
    completion: str
