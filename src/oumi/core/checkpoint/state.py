# SPDX-License-Identifier: Apache-2.0
"""What a run must remember to go on as if it had never stopped. Tensors as safetensors, the rest as JSON."""

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


def save_state(run: Run, directory: Path, random_states: list[dict[str, Any]]) -> None:
    """Writes all but the weights: optimizer, schedule, loss scale, progress, and the random generators of each rank."""
    folder = directory / FOLDER
    folder.mkdir()
    _write(folder / "optimizer", optimizer_state(run.model, run.optimizer))
    for rank, state in enumerate(random_states):
        _write(folder / f"random-{rank:05}", state)
    progress = {
        "train_state": asdict(run.state),
        "schedule": {key: value for key, value in run.schedule.state_dict().items() if key != "lr_lambdas"},
        "scaler": run.scaler.state_dict(),
        "loader": run.loader.state(),
    }
    (folder / "progress.json").write_text(json.dumps(progress, indent=1) + "\n")


def load_state(run: Run, directory: Path) -> None:
    """Puts a run where `save_state` left it; the weights are loaded already.

    Raises:
        StorageError: A part is missing; nothing is guessed in its place.
    """
    folder = directory / FOLDER
    if not folder.is_dir():
        raise StorageError(f"{directory}: holds weights but no training state, so a run cannot go on from it")
    load_optimizer_state(run.model, run.optimizer, _read(folder / "optimizer"))
    progress = _read_json(folder / "progress.json")
    # The functions of a schedule come from the plan; None tells it to keep its own.
    unchanged = {"lr_lambdas": [None] * len(run.optimizer.param_groups)}
    run.schedule.load_state_dict({**unchanged, **progress["schedule"]})
    run.scaler.load_state_dict(progress["scaler"])
    run.state = TrainState(**progress["train_state"])
    run.loader.restore(progress["loader"])
    random_file = folder / f"random-{run.world.rank:05}"
    if random_file.with_suffix(".json").exists():  # not for ranks that the run did not have then
        _restore_random(_read(random_file), run.world.device)


def optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer by the names of the parameters, so that it fits any order of them."""
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
    """Puts the state of each parameter where its name is.

    Raises:
        StorageError: The optimizer has other parameters, or other groups of them.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    saved_groups = {frozenset(group["params"]): group for group in saved["param_groups"]}
    if {frozenset(group) for group in groups} != saved_groups.keys():
        raise StorageError("the checkpoint's optimizer has other parameters than the run's, so it cannot go on from it")
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
    """Returns the state of the random generators of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random(state: dict[str, Any], device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _write(stem: Path, value: Any) -> None:
    """Writes nested values as `<stem>.json`, their tensors as `<stem>.safetensors`."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_without_tensors(value, "", tensors, {}))
    stem.with_suffix(".json").write_text(text + "\n")
    save_file(tensors, stem.with_suffix(".safetensors"))


def _read(stem: Path) -> Any:
    tensors_path = stem.with_suffix(".safetensors")
    if not tensors_path.exists():
        raise StorageError(f"{tensors_path}: missing, so the run cannot go on from this checkpoint")
    return _with_tensors(_read_json(stem.with_suffix(".json")), load_file(tensors_path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StorageError(f"{path}: missing, so the run cannot go on from this checkpoint") from error


def _without_tensors(
    value: Any, name: str, tensors: dict[str, torch.Tensor], names: dict[tuple[object, ...], str]
) -> Any:
    """Returns the value with names in place of its tensors, which it puts into `tensors`, one that is shared once."""
    if isinstance(value, torch.Tensor):
        place = (value.data_ptr() or name, value.dtype, value.shape, value.stride())
        if place not in names:
            names[place] = name
            tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": names[place]}
    if isinstance(value, dict):
        # JSON keys are text; optimizers number their parameters, so the type of a key is kept beside it.
        return {"dict": [[key, _without_tensors(item, f"{name}/{key}", tensors, names)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{name}/{i}", tensors, names) for i, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
