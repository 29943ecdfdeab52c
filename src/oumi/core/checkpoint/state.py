# SPDX-License-Identifier: Apache-2.0
"""The training state of a checkpoint, from which a run resumes exactly. Tensors as safetensors, the rest as JSON.

No pickle: loading it can run code.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from oumi.core.checkpoint.slices import Slice, SlicedTensors, write_index, write_slices
from oumi.core.distributed.parameters import Parameters
from oumi.core.distributed.sharding import SHARD, local_rows
from oumi.core.errors import StorageError
from oumi.core.run import Run, TrainState

FOLDER = "state"
_PROGRESS = "train_state.json"
"""What another trainer's checkpoint has of our own state."""


def save_state(run: Run, directory: Path, random_states: list[dict[str, Any]], position: dict[str, Any]) -> None:
    """Writes the training state without the weights: optimizer, schedule, loss scale, progress, rows, random states.

    Args:
        run: The run.
        directory: The directory of the checkpoint.
        random_states: The result of `random_state` of each rank.
        position: The position in the rows, the result of `run.loader.state`.
    """
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    optimizer = optimizer_state(run.parameters.by_name, run.optimizer)
    if run.parameters.divided:  # the ranks have written their slices of the tensors
        (folder / "optimizer.json").write_text(json.dumps(_without_tensors(optimizer, "", {}, {})) + "\n")
    else:
        _write(folder / "optimizer", optimizer)
    for rank, state in enumerate(random_states):
        _write(folder / f"random-{rank:05}", state)
    progress = {
        "train_state": asdict(run.state),
        # Without the functions of a LambdaLR, which are not JSON and come from the plan.
        "schedule": {key: value for key, value in run.schedule.state_dict().items() if key != "lr_lambdas"},
        "scaler": run.scaler.state_dict(),
        "loader": position,
    }
    (folder / "progress.json").write_text(json.dumps(progress, indent=1) + "\n")


def save_slices(run: Run, folder: Path) -> None:
    """Writes this rank's slices of a divided model's optimizer state into a folder; collective.

    With `SHARDED_STATE_DICT` also its slices of the weights. The ranks of a second copy of the model write nothing.

    Raises:
        StorageError: Disk full, or another failure of the file system.
        OtherRankError: Of another rank.
    """
    parameters = run.parameters
    mesh = next(iter(parameters.divided.values())).device_mesh
    rank, num_ranks = mesh.get_local_rank(SHARD), mesh.size(mesh.mesh_dim_names.index(SHARD))
    is_first_copy = run.world.rank == rank if mesh.ndim == 1 else mesh.get_local_rank(0) == 0
    states: dict[str, torch.Tensor] = {}
    _without_tensors(optimizer_state(parameters.by_name, run.optimizer), "", states, {})
    tensors = {"optimizer": {key: _slice(tensor, _divided(key, parameters)) for key, tensor in states.items()}}
    if not run.plan.sharding.saves_whole_model:
        tensors["weights"] = {
            name: _slice(weight.to_local() if isinstance(weight, DTensor) else weight, weight)
            for name, weight in run.model.named_parameters()
        }

    def write() -> dict[str, Any]:
        entries = {}
        for name, slices in tensors.items() if is_first_copy else ():
            # What is not divided is on all ranks.
            own = {key: part for key, part in slices.items() if rank == 0 or part.rows.shape != part.shape}
            entries[name] = write_slices(folder / name, own, rank, num_ranks)
        return entries

    entries = run.world.on_all(write)
    for name in tensors if run.world.is_main else ():
        write_index(folder / name, [of_rank[name] for of_rank in entries if name in of_rank])


def load_state(run: Run, directory: Path) -> None:
    """Restores what `save_state` wrote; the weights are already loaded.

    Raises:
        StorageError: A part is missing, which never gets a default instead.
    """
    folder = directory / FOLDER
    if not folder.is_dir():
        raise StorageError(f"{directory}: has weights but no training state, so the run cannot resume from it")
    if (folder / "weights.index.json").exists():
        _load_weights(run.model, SlicedTensors(folder / "weights"))
    states = SlicedTensors(folder / "optimizer")

    def rows(key: str) -> torch.Tensor:
        divided = _divided(key, run.parameters)
        is_like_weight = divided is not None and states.shape(key) == tuple(divided.shape)
        return states.read(key, *local_rows(divided)) if is_like_weight else states.read(key)

    optimizer = _with_tensors(_read_json(folder / "optimizer.json"), rows)
    load_optimizer_state(run.parameters.by_name, run.optimizer, optimizer)
    progress = _read_json(folder / "progress.json")
    # None makes LambdaLR keep its own functions.
    unchanged = {"lr_lambdas": [None] * len(run.optimizer.param_groups)}
    run.schedule.load_state_dict({**unchanged, **progress["schedule"]})
    run.scaler.load_state_dict(progress["scaler"])
    run.state = TrainState(**progress["train_state"])
    run.loader.restore(progress["loader"])
    random_file = folder / f"random-{run.world.rank:05}"
    if not random_file.with_suffix(".json").exists():  # a rank that the run did not have then
        return
    state = _read(random_file)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))  # JSON turned the tuple into a list
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if run.world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], run.world.device)


def write_progress(directory: Path, state: TrainState, position: dict[str, Any]) -> None:
    """Adds how far the run has come, and its position in the rows, to the checkpoint of another trainer."""
    progress = {**asdict(state), "loader": position}
    (directory / _PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")


def read_progress(directory: Path, step: int) -> tuple[TrainState, dict[str, Any]]:
    """Returns what `write_progress` wrote; the step alone if the checkpoint is of a version that wrote nothing."""
    path = directory / _PROGRESS
    progress = _read_json(path) if path.exists() else {"step": step}
    return TrainState(**{key: value for key, value in progress.items() if key != "loader"}), progress.get("loader", {})


def optimizer_state(parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer by parameter names, so that it does not depend on the order of parameters."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    numbered = optimizer.state_dict()
    order = [name for group in groups for name in group]
    return {
        "state": {order[number]: state for number, state in numbered["state"].items()},
        "param_groups": [
            {**group, "params": names} for group, names in zip(numbered["param_groups"], groups, strict=True)
        ],
    }


def load_optimizer_state(
    parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Restores the state of an optimizer from the result of `optimizer_state`, by parameter names.

    Raises:
        StorageError: The optimizer has other parameters, or other groups of them.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    saved_groups = {frozenset(group["params"]): group for group in saved["param_groups"]}
    if {frozenset(group) for group in groups} != saved_groups.keys():
        raise StorageError("the optimizer of the checkpoint has other parameters, so the run cannot resume from it")
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    optimizer.load_state_dict(
        {
            "state": {numbers[name]: state for name, state in saved["state"].items()},
            "param_groups": [
                {**saved_groups[frozenset(group)], "params": [numbers[name] for name in group]} for group in groups
            ],
        }
    )


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the state of the random generators of this process: Python, NumPy, torch, and the GPU's if it has one."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _write(stem: Path, value: Any) -> None:
    """Writes nested values to `<stem>.json`, and their tensors to `<stem>.safetensors`."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_without_tensors(value, "", tensors, {}))
    stem.with_suffix(".json").write_text(text + "\n")
    save_file(tensors, stem.with_suffix(".safetensors"))


def _read(stem: Path) -> Any:
    """Returns the values that `_write` wrote."""
    return _with_tensors(_read_json(stem.with_suffix(".json")), SlicedTensors(stem).read)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{path}: missing, so the run cannot resume from this checkpoint") from error


def _without_tensors(
    value: Any, name: str, tensors: dict[str, torch.Tensor], names: dict[tuple[object, ...], str]
) -> Any:
    """Returns the value with names in place of its tensors, and adds the tensors to `tensors`.

    Args:
        value: Nested dicts, lists, tensors and JSON values.
        name: Path of the value, with slashes.
        tensors: Tensors by name, extended in place.
        names: Names of those tensors by their memory, extended in place. A shared tensor is saved once.
    """
    if isinstance(value, torch.Tensor):
        # All empty tensors have the address 0, so these are distinguished by name.
        memory = (value.data_ptr() or name, value.dtype, value.shape, value.stride())
        if memory not in names:
            names[memory] = name
            tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": names[memory]}
    if isinstance(value, dict):
        # A list of pairs, since keys of JSON objects are text, and some optimizers have keys that are numbers.
        return {"dict": [[key, _without_tensors(item, f"{name}/{key}", tensors, names)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}/{i}", tensors, names) for i, item in enumerate(value)]
    return value


def _with_tensors(value: Any, read: Callable[[str], torch.Tensor]) -> Any:
    """Returns the value with tensors in place of their names, the inverse of `_without_tensors`."""
    if isinstance(value, dict) and "tensor" in value:
        return read(value["tensor"])
    if isinstance(value, dict):
        return {key: _with_tensors(item, read) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_with_tensors(item, read) for item in value]
    return value


def _divided(key: str, parameters: Parameters) -> DTensor | None:
    """Returns the divided weight that a tensor of the optimizer state belongs to, by the path of the tensor."""
    _, kind, name, *_ = *key.split("/"), "", ""
    return parameters.divided.get(name) if kind == "state" else None


def _slice(tensor: torch.Tensor, weight: torch.Tensor | None) -> Slice:
    """Returns a tensor as the rows that a rank has of it, if it has as many as of its weight; else as a whole."""
    if isinstance(weight, DTensor) and tensor.shape == weight._local_tensor.shape:
        return Slice(tensor, local_rows(weight)[0], tuple(weight.shape))
    return Slice(tensor, 0, tuple(tensor.shape))


@torch.no_grad()
def _load_weights(model: torch.nn.Module, slices: SlicedTensors) -> None:
    names = set(slices)
    for name, weight in model.named_parameters():
        if name not in names:
            continue
        if isinstance(weight, DTensor):
            weight._local_tensor.copy_(slices.read(name, *local_rows(weight)))
        else:
            weight.copy_(slices.read(name))
