# SPDX-License-Identifier: Apache-2.0
"""Tensors whose rows are divided over several safetensors files, with an index; any rank reads the rows that it needs.

`<stem>-00000-of-00002.safetensors` has the rows of the first rank. `<stem>.index.json` has the shape and dtype of each
tensor, and the file, the first row and the number of rows of each part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from oumi.core.errors import StorageError


@dataclass(frozen=True)
class Slice:
    """Rows of a tensor."""

    rows: torch.Tensor
    """[count, ...]; of a tensor without dimensions, the tensor itself."""
    start: int
    """Number of the first row."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""


def write_slices(stem: Path, slices: Mapping[str, Slice], rank: int, num_ranks: int) -> dict[str, Any]:
    """Writes the slices of a rank to a file of their own, and returns their part of the index."""
    name = f"{stem.name}-{rank:05}-of-{num_ranks:05}.safetensors"
    # An empty slice is not written: a file cannot say where it would begin.
    written = {key: part.rows.detach().cpu().contiguous() for key, part in slices.items() if part.rows.numel()}
    save_file(written, stem.with_name(name))
    return {
        key: {
            "shape": list(slices[key].shape),
            "dtype": str(rows.dtype).removeprefix("torch."),
            "parts": [[name, slices[key].start, len(rows) if rows.ndim else 1]],
        }
        for key, rows in written.items()
    }


def write_index(stem: Path, parts_of_ranks: Sequence[Mapping[str, Any]]) -> None:
    """Writes the index of the files that `write_slices` wrote on all ranks."""
    index: dict[str, Any] = {}
    for entries in parts_of_ranks:
        for key, entry in entries.items():
            index.setdefault(key, {**entry, "parts": []})["parts"].extend(entry["parts"])
    stem.with_name(f"{stem.name}.index.json").write_text(json.dumps({"tensors": index}, indent=1) + "\n")


class SlicedTensors:
    """Reads tensors by rows, from files with an index or from a single file without one."""

    def __init__(self, stem: Path) -> None:
        """Opens the files of a stem; raises StorageError if there are none."""
        self._folder = stem.parent
        index, single = stem.with_name(f"{stem.name}.index.json"), stem.with_name(f"{stem.name}.safetensors")
        self._files: dict[str, Any] = {}
        if index.exists():
            self._tensors: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["tensors"]
        elif single.exists():
            self._tensors = {}
            for key in self._file(single.name).keys():  # noqa: SIM118  # not a dict
                shape = self._file(single.name).get_slice(key).get_shape()
                self._tensors[key] = {"shape": shape, "parts": [[single.name, 0, shape[0] if shape else 1]]}
        else:
            raise StorageError(f"{single}: missing, so the run cannot resume from this checkpoint")

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a whole tensor."""
        return tuple(self._tensors[key]["shape"])

    def read(self, key: str, start: int = 0, count: int | None = None) -> torch.Tensor:
        """Returns `count` rows of a tensor from row `start` on, or all of them."""
        entry, shape = self._tensors[key], self.shape(key)
        if not shape:
            tensor: torch.Tensor = self._file(entry["parts"][0][0]).get_tensor(key)
            return tensor
        end = shape[0] if count is None else start + count
        parts = []
        for file, first, length in sorted(entry["parts"], key=lambda part: part[1]):
            begin, stop = max(start, first), min(end, first + length)
            if begin < stop:
                parts.append(self._file(file).get_slice(key)[begin - first : stop - first])
        if sum(map(len, parts)) != end - start:
            raise StorageError(f"{self._folder}: rows {start} to {end} of {key} are missing")
        if parts:
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        file = entry["parts"][0][0]
        empty: torch.Tensor = self._file(file).get_slice(key)[:0]
        return empty

    def _file(self, name: str) -> Any:
        if name not in self._files:
            if not (self._folder / name).exists():
                raise StorageError(f"{self._folder / name}: missing, so the run cannot resume from this checkpoint")
            self._files[name] = safe_open(self._folder / name, framework="pt")
        return self._files[name]
