# SPDX-License-Identifier: Apache-2.0
"""Makes the weights of a divided model whole again, one at a time, in a file of the main rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from oumi.core.distributed.sharding import replace_parameters

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8",
    torch.int8: "I8",
}  # fmt: skip
"""Names of dtypes in safetensors files."""
_WRAPPER = "_checkpoint_wrapped_module."
"""What torch's wrapper that recomputes a block puts into the names of its parameters."""


def plain_name(name: str) -> str:
    """Returns the name of a parameter without that of a wrapper around its block."""
    return name.replace(_WRAPPER, "")


def empty_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose parameters take no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(_shape(parameter), dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return deepcopy(model, memo)


def write_whole(weights: Mapping[str, torch.Tensor], path: Path | None) -> OSError | None:
    """Writes weights to a safetensors file. Collective: of a divided weight, all ranks send their slices.

    Only one weight is in memory at a time.

    Args:
        weights: Weights by name, in the same order on all ranks.
        path: The file; None on the ranks that only send.

    Returns:
        The error if the file cannot be written; not raised, so that all weights are sent and no rank waits.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, weight in weights.items():
        shape = _shape(weight)
        start, end = end, end + shape.numel() * weight.element_size()
        header[name] = {"dtype": _DTYPES[weight.dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    problem: OSError | None = None
    file = None
    try:
        if path is not None:
            file = path.open("wb")
            file.write(len(text).to_bytes(8, "little") + text)
    except OSError as error:
        problem = error
    for weight in weights.values():
        whole = _gathered(weight)
        try:
            if file is not None and problem is None:
                file.write(whole.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
        except OSError as error:
            problem = error
    try:
        if file is not None:
            file.close()
    except OSError as error:
        problem = problem or error
    return problem


def read_whole(model: nn.Module, path: Path, buffers_of: nn.Module) -> None:
    """Sets the weights of a model to those of a file, which stay on disk until they are read.

    Args:
        model: The model.
        path: The file that `write_whole` wrote.
        buffers_of: The divided model, whose buffers are whole on each rank.
    """
    files = load_file(path)  # mapped, not copied
    replace_parameters(
        model, {id(p): nn.Parameter(files[name], False) for name, p in model.named_parameters() if name in files}
    )
    buffers = {plain_name(name): buffer for name, buffer in buffers_of.named_buffers(remove_duplicate=False)}
    for module_name, module in model.named_modules():
        for name in module._buffers:
            module._buffers[name] = buffers.get(f"{module_name}.{name}" if module_name else name)


def free_whole(model: nn.Module) -> None:
    """Takes the weights of a model away, after which nothing refers to the file that they were read from."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    replace_parameters(model, empty)


def _shape(weight: torch.Tensor) -> torch.Size:
    """Returns the shape of a whole weight; DeepSpeed leaves an empty tensor in place of one that it divides."""
    return torch.Size(getattr(weight, "ds_shape", weight.shape))


def _gathered(weight: torch.Tensor) -> torch.Tensor:
    """Returns a whole weight. Collective if it is divided."""
    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if not hasattr(weight, "ds_shape"):
        return weight
    import deepspeed  # the package is there, since it divided the weight

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()
