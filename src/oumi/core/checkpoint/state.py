# SPDX-License-Identifier: Apache-2.0
"""The training state of a checkpoint, from which a run resumes exactly. Tensors as safetensors, the rest as JSON.

No pickle: loading it can run code.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

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
    folder.mkdir()
    _write(folder / "optimizer", optimizer_state(run.model, run.optimizer))
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


def load_state(run: Run, directory: Path) -> None:
    """Restores what `save_state` wrote; the weights are already loaded.

    Raises:
        StorageError: A part is missing, which never gets a default instead.
    """
    folder = directory / FOLDER
    if not folder.is_dir():
        raise StorageError(f"{directory}: has weights but no training state, so the run cannot resume from it")
    load_optimizer_state(run.model, run.optimizer, _read(folder / "optimizer"))
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


def write_progress(directory: Path, state: TrainState) -> None:
    """Adds how far the run has come to the checkpoint of another trainer."""
    (directory / _PROGRESS).write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")


def read_progress(directory: Path, step: int) -> TrainState:
    """Returns what `write_progress` wrote; the step alone if the checkpoint is of a version that wrote nothing."""
    path = directory / _PROGRESS
    return TrainState(**_read_json(path)) if path.exists() else TrainState(step=step)


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer by parameter names, so that it does not depend on the order of parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    numbered = optimizer.state_dict()
    order = [name for group in groups for name in group]
    return {
        "state": {order[number]: state for number, state in numbered["state"].items()},
        "param_groups": [
            {**group, "params": names} for group, names in zip(numbered["param_groups"], groups, strict=True)
        ],
    }


def load_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restores the state of an optimizer from the result of `optimizer_state`, by parameter names.

    Raises:
        StorageError: The optimizer has other parameters, or other groups of them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
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
    tensors_path = stem.with_suffix(".safetensors")
    if not tensors_path.exists():
        raise StorageError(f"{tensors_path}: missing, so the run cannot resume from this checkpoint")
    return _with_tensors(_read_json(stem.with_suffix(".json")), load_file(tensors_path))


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


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Returns the value with tensors in place of their names, the inverse of `_without_tensors`."""
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
