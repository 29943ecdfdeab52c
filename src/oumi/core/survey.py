# SPDX-License-Identifier: Apache-2.0
"""What a plan needs to know of the world: the machine, the data and the model as they are. Imports no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from oumi.core import host
from oumi.core.configs import TrainingConfig
from oumi.core.datasets import dataset_for
from oumi.core.plan.parts import Facts, ModelFacts
from oumi.core.recipes import resolve_asset

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def survey(config: TrainingConfig) -> Facts:
    """Returns the facts for a plan; what only the network could tell stays unknown."""
    machine = host.describe_host()
    return Facts(
        device=machine.device,
        device_name=machine.device_name,
        has_bf16=machine.has_bf16,
        num_cpus=machine.num_cpus,
        memory_bytes=machine.memory_bytes,
        free_bytes=host.free_bytes(Path(config.training.output_dir).expanduser().absolute()),
        num_rows=_count_rows(config),
        model=_model_facts(Path(str(resolve_asset(config.model.model_name)))),
    )


def _count_rows(config: TrainingConfig) -> int | None:
    """Returns the rows of the training mixture, None unless all of it can be counted without reading it whole."""
    total = 0
    for params in config.data.train.datasets:
        count = dataset_for(params).count()
        if count is None:
            return None
        total += count
    return total


def _model_facts(folder: Path) -> ModelFacts:
    """Returns what the files of a local model tell."""
    path = folder / "config.json"
    if not path.is_file():
        return ModelFacts()
    config = json.loads(path.read_text())
    headers = [_header(file) for file in sorted(folder.glob("*.safetensors"))]
    tensors = [one for header in headers for name, one in header.items() if name != "__metadata__"]
    dtypes = [_DTYPES[one["dtype"]] for one in tensors if one["dtype"] in _DTYPES]
    return ModelFacts(
        num_parameters=sum(_size(one["shape"]) for one in tensors) if tensors else None,
        stored_dtype=max(set(dtypes), key=dtypes.count) if dtypes else None,
        max_positions=config.get("max_position_embeddings") or config.get("n_positions"),
    )


def _header(path: Path) -> dict[str, Any]:
    """Returns the names, shapes and dtypes that a safetensors file begins with."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        return header


def _size(shape: list[int]) -> int:
    size = 1
    for part in shape:
        size *= part
    return size
