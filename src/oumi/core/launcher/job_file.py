# SPDX-License-Identifier: Apache-2.0
"""Makes a job from a training config: machines from its plan, setup for this version, the command that trains."""

from __future__ import annotations

import math
import os
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oumi import __version__
from oumi.core.configs import TrainingConfig
from oumi.core.configs.overrides import Override
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.inspect import gather_facts
from oumi.core.launcher.sky.task import block_yaml, plain_name
from oumi.core.launcher.upload import find_upload
from oumi.core.plan.facts import Facts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import load_checked
from oumi.core.recipes import resolve_config
from oumi.core.system.devices import DEVICES, find_machine
from oumi.core.system.filesystem import expanded

ACCELERATORS = {
    "l4": "L4", "a10g-24gb": "A10G", "rtx-4090": "RTX4090", "a100-40gb": "A100", "l40s": "L40S",
    "a100-80gb": "A100-80GB", "h100-80gb": "H100", "h200-141gb": "H200", "b200-180gb": "B200",
}  # fmt: skip
"""SkyPilot's names of the devices that a plan knows, those with less memory first, then the slower ones."""
_ANY = (1, 2, 4, 8)
OFFERS: dict[str, dict[str, tuple[int, ...]]] = {
    "gcp": {"l4": _ANY, "a100-40gb": _ANY, "a100-80gb": _ANY, "h100-80gb": _ANY, "h200-141gb": (8,)},
    "aws": {
        "l4": (1, 4, 8), "a10g-24gb": (1, 4, 8), "l40s": (1, 4, 8), "a100-40gb": (8,), "a100-80gb": (8,),
        "h100-80gb": (8,), "h200-141gb": (8,),
    },
    "azure": {"a100-80gb": _ANY, "h100-80gb": (8,)},
    "lambda": {"a100-40gb": _ANY, "a100-80gb": (8,), "h100-80gb": _ANY},
    "runpod": {"l4": _ANY, "rtx-4090": _ANY, "l40s": _ANY, "a100-80gb": _ANY, "h100-80gb": _ANY, "b200-180gb": _ANY},
    "nebius": {"l40s": (1, 2, 4), "h100-80gb": (1, 8), "h200-141gb": (1, 8), "b200-180gb": (8,)},
}  # fmt: skip
"""GPUs that a machine of a cloud can have, by device: a choice from SkyPilot's catalog (v7), which `plan` checks."""
_OWN_MACHINES = ("k8s", "slurm", "sky-slurm")
"""Clusters whose GPUs are not known here."""
CLOUDS = (*OFFERS, *_OWN_MACHINES, "local")
_MOST_NODES = 4
_SYSTEM_GIB = 60
"""Disk for the system, CUDA and packages."""
_DISK_STEP = 50


@dataclass(frozen=True)
class Choice:
    """Machines that hold a run."""

    device: str
    gpus: int
    """Of a machine."""
    nodes: int
    plan: Plan
    facts: Facts
    has_fsdp: bool
    """The model must be divided for it, which the config does not say itself."""


def make_job_file(
    name: str, overrides: Sequence[Override], cloud: str, device: str | None = None, file_name: str = "job.yaml"
) -> str:
    """Returns the text of a job file that trains with a config.

    Args:
        name: Config file, which is below the current directory, or a recipe.
        overrides: Keys of the config that are given on the command line, which become part of the job's command.
        cloud: Where it runs.
        device: Name of the GPU; None for the smallest that the cloud has and that holds the run.
        file_name: The name that the text gives itself.

    Raises:
        ConfigError: A problem of the config, or no GPU of the cloud holds the run.
    """
    cloud = cloud.lower()
    if cloud not in CLOUDS:
        hint = did_you_mean(cloud, CLOUDS) or f"; known: {', '.join(CLOUDS)}"
        raise ConfigError(f"--cloud: no job file can be made for '{cloud}'{hint}")
    path = resolve_config(name)
    config = load_checked(path, overrides)
    choice = None if cloud == "local" else choose(path, overrides, cloud, device)
    job_name = config.training.run_name or f"{path.resolve().parent.name}-{path.stem}"
    flags = [shlex.join([f"--{override.key}", override.text]) for override in overrides]
    if choice is not None and choice.has_fsdp:
        flags.append("--fsdp.enable_fsdp true")
    resources: dict[str, Any] = {"cloud": cloud}
    if choice is not None:
        accelerator = "" if cloud == "slurm" else ACCELERATORS[choice.device]  # a cluster has its own names of GPUs
        resources |= {"accelerators": f"{accelerator}:{choice.gpus}"}
    if choice is not None and cloud != "slurm":
        resources["disk_size"] = disk_gib(choice)
    job = {
        "name": plain_name(job_name),
        "num_nodes": choice.nodes if choice else 1,
        "working_dir": ".",
        "resources": resources,
        "secrets": list(_secrets(config)),
        "file_mounts": {} if cloud == "local" else {path: path for path in _local_paths(config) if _is_absolute(path)},
        "setup": None if cloud == "local" else _setup(cloud),
        "run": _run(_sent_name(name, path), flags, choice, cloud),
    }
    text = block_yaml({key: value for key, value in job.items() if value not in (None, [], {})})
    command = f"oumi launch up -c {shlex.quote(file_name)} --cluster {job['name']} --dry-run"
    # A path may contain a line break, which would end the comment.
    head = [
        "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
        for line in _head(choice, command, cloud, config)
    ]
    return "\n".join([*head, "", text])


def choose(path: Path, overrides: Sequence[Override], cloud: str, device: str | None) -> Choice:
    """Returns the fewest and then the smallest GPUs of a cloud whose memory holds a run; raises ConfigError if none do.

    One GPU holds all of the model; several hold a part each, if the config does not say otherwise.
    """
    offers = OFFERS.get(cloud) or dict.fromkeys(ACCELERATORS, _ANY)
    if device is None and cloud in _OWN_MACHINES:
        raise ConfigError(f"--device: required with {cloud}, whose GPUs are not known here: {', '.join(DEVICES)}")
    if device is not None:
        find_machine(device)  # names the nearest one
        if device.lower() not in offers:
            raise ConfigError(f"--device: {cloud} has no {device}; it has {', '.join(offers)}")
        offers = {device.lower(): offers[device.lower()]}
    # Without a device, the memory decides, and it is known only with the files that describe the model.
    facts = gather_facts(load_checked(path, overrides), may_download=device is None, machine=find_machine("cpu"))
    largest = ""
    for nodes, gpus in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (_MOST_NODES, 8)]:
        for name in (name for name in ACCELERATORS if gpus in offers.get(name, ())):
            choice = _planned(path, overrides, facts, name, (nodes, gpus))
            memory = choice.plan.memory
            if memory is None and device is None:
                raise ConfigError(f"{path.name}: {_why_unknown(choice.plan)}; name a GPU by --device")
            if memory is None or not memory.is_short:
                return choice
            largest = (
                f"{nodes * gpus} x {name}: {memory.total / 1e9:,.0f} GB on each of {memory.available / 1e9:,.0f} GB"
            )
    raise ConfigError(f"{path.name}: no machines of {cloud} hold this run; {largest}. `oumi plan --device` shows why")


def disk_gib(choice: Choice) -> int:
    """Returns the disk of a machine in GiB: system, the model's files, and all that the run writes."""
    model = choice.facts.model
    weights = 4 * (model.num_parameters or (model.shape.num_parameters if model.shape else 0) or 0)
    gib = (weights + (choice.plan.disk.total_bytes or 0)) / (1 << 30) + _SYSTEM_GIB
    return math.ceil(gib / _DISK_STEP) * _DISK_STEP


def _planned(path: Path, overrides: Sequence[Override], facts: Facts, device: str, size: tuple[int, int]) -> Choice:
    """Returns the plan of a run on a number of machines with a number of GPUs each."""
    nodes, gpus = size
    config, machine = load_checked(path, overrides), find_machine(device)
    is_divided = config.fsdp.enable_fsdp or config.deepspeed.enable_deepspeed
    has_fsdp = nodes * gpus > 1 and not is_divided
    if has_fsdp:
        config = load_checked(path, [*overrides, Override("fsdp.enable_fsdp", "true", "--fsdp.enable_fsdp")])
    there = replace(
        facts,
        device=machine.device,
        device_name=machine.device_name,
        has_bf16=machine.has_bf16,
        has_fp8=machine.has_fp8,
        memory_bytes=machine.memory_bytes,
    )
    return Choice(device, gpus, nodes, make_plan(config, there, nodes * gpus, gpus), there, has_fsdp)


def _why_unknown(plan: Plan) -> str:
    if not plan.is_native:
        return f"the memory of trainer {plan.trainer} cannot be predicted"
    return "the memory of this run cannot be predicted: its model is of a family that no plan knows, or is not here"


def _head(choice: Choice | None, command: str, cloud: str, config: TrainingConfig) -> Iterator[str]:
    if choice is None:
        yield "# Trains on this machine."
    else:
        memory = choice.plan.memory
        needs = _why_unknown(choice.plan)
        if memory is not None:
            needs = f"the plan needs {memory.total / 1e9:,.1f} of {memory.available / 1e9:,.1f} GB on each"
        yield f"# {choice.nodes} x {choice.gpus} {choice.device}: {needs}."
    yield f"#   {command}"
    if cloud in OFFERS:
        yield (
            f"# {config.training.output_dir} is on the disk of the machine, which `oumi launch down` deletes; a path "
            "of storage_mounts stays."
        )
    if cloud != "local":
        for path in _not_uploaded(config):
            yield f"# {path} is not uploaded, since git ignores it; the config may name it by its absolute path."
    if cloud != "local" and ".dev" in __version__ and not _is_checkout(Path()):
        yield f"# oumi {__version__} is a development version: put its wheel here, and name that in `setup`."


def _local_paths(config: TrainingConfig) -> Iterator[str]:
    """Yields the files and directories of this machine that a run reads, as the config writes them."""
    named = [params.dataset_path for split in (config.data.train, config.data.validation) for params in split.datasets]
    for path in dict.fromkeys([config.model.model_name, config.model.tokenizer_name, *named]):
        if path and "://" not in path and expanded(path).exists():
            yield path


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "~"))


def _not_uploaded(config: TrainingConfig) -> Iterator[str]:
    """Yields the paths below this directory that a run reads and that git ignores."""
    names = find_upload(".").names
    for path in _local_paths(config):
        name = os.path.normpath(path)
        if not _is_absolute(path) and not any(file == name or file.startswith(f"{name}/") for file in names):
            yield path


def _secrets(config: TrainingConfig) -> Iterator[str]:
    if "HF_TOKEN" in os.environ:
        yield "HF_TOKEN"
    if config.training.enable_wandb and "WANDB_API_KEY" in os.environ:
        yield "WANDB_API_KEY"


def _setup(cloud: str) -> str:
    extras = "gpu,tracking"
    what = f".[{extras}]" if _is_checkout(Path()) else f"oumi[{extras}]=={__version__}"
    if cloud == "slurm":
        return f"set -e\npython3 -m venv .venv\n. .venv/bin/activate\npip install '{what}'\n"
    return f"set -e\npip install uv\nuv pip install --system '{what}'\n"


def _is_checkout(directory: Path) -> bool:
    """Returns True if a directory is a source tree of Oumi, which is installed on the other machine as it is."""
    try:
        return bool(tomllib.loads((directory / "pyproject.toml").read_text())["project"]["name"] == "oumi")
    except (OSError, ValueError, KeyError):
        return False


def _run(config: str, flags: Sequence[str], choice: Choice | None, cloud: str) -> str:
    is_single = choice is None or choice.nodes * choice.gpus == 1
    command = " ".join(
        ["oumi train" if is_single else "oumi distributed torchrun -m oumi train", f"-c {shlex.quote(config)}", *flags]
    )
    activate = ". .venv/bin/activate\n" if cloud == "slurm" else ""
    return f"set -e\n{activate}{command}\n"


def _sent_name(name: str, path: Path) -> str:
    """Returns the name by which the other machine finds the config: a recipe's, or the path below this directory."""
    if not Path(name).is_file():
        return name  # a recipe, which the package has there too
    below = path.resolve()
    if not below.is_relative_to(Path.cwd()):
        raise ConfigError(f"{name}: expected a file below the current directory, which is what a job uploads")
    return below.relative_to(Path.cwd()).as_posix()
