# SPDX-License-Identifier: Apache-2.0
"""Describes the environment of a run: packages, device, code and command line, without secrets. Imports no torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from oumi.core.system.host import describe_host
from oumi.core.system.redact import redact, redact_command

PACKAGES = (
    "oumi",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "huggingface-hub",
    "peft",
    "accelerate",
    "trl",
    "pydantic",
    "pyyaml",
    "numpy",
    "pyarrow",
    "tensorboard",
    "torchvision",
    "triton",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "liger-kernel",
    "vllm",
    "verl",
    "skypilot",
    "wandb",
    "mlflow",
)
"""The packages that a bug report should list first."""

VARIABLES = (
    "ACCELERATE_DYNAMO_BACKEND",
    "ACCELERATE_DYNAMO_MODE",
    "ACCELERATE_DYNAMO_USE_DYNAMIC",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH",
    "ACCELERATE_USE_FSDP",
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
    "OUMI_EXTRA_DEPS_FILE",
    "OUMI_FORCE_EDITABLE_INSTALL",
    "OUMI_SLURM_CONNECTIONS",
    "OUMI_USE_SPOT_VM",
    "PYTORCH_CUDA_ALLOC_CONF",
    "RANK",
    "TOKENIZERS_PARALLELISM",
    "WANDB_API_KEY",
    "WANDB_PROJECT",
    "WORLD_SIZE",
)
"""Environment variables that affect a run."""


def describe_environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns what is needed to reproduce a run elsewhere, as JSON values with secrets masked.

    Args:
        command: The command line, by default that of this process.
    """
    return {
        "command": redact_command(sys.argv if command is None else command),
        "working_dir": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": asdict(describe_host()),
        "gpus": list_gpus(),
        "git": git_state(Path.cwd()),
        "environment": redact({name: os.environ[name] for name in VARIABLES if name in os.environ}),
        "packages": installed_packages(),
    }


@cache  # reads hundreds of files, which takes 0.1 s
def installed_packages() -> dict[str, str]:
    """Returns the version of every installed distribution, by name in alphabetical order."""
    packages = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name and name not in packages:  # of duplicates, Python imports the first one on the path
            packages[name] = distribution.version
    return dict(sorted(packages.items()))


def list_gpus() -> list[dict[str, str]]:
    """Returns the name, memory in MiB and driver of each NVIDIA GPU; empty without nvidia-smi."""
    fields = ("name", "memory_mib", "driver")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in _output(query).splitlines()]


def git_state(directory: Path) -> dict[str, Any] | None:
    """Returns commit, branch, remote, and whether files differ from the commit; None outside a git checkout."""
    # Without fsmonitor, a setting by which a repository can name a program that git then runs.
    git = ["git", "-C", str(directory), "-c", "core.fsmonitor=false"]
    commit = _output([*git, "rev-parse", "HEAD"])
    if not commit:
        return None
    return {
        "commit": commit,
        "branch": _output([*git, "rev-parse", "--abbrev-ref", "HEAD"]),
        # Without untracked files: outputs and data beside the code would make every checkout look changed.
        "is_changed": bool(_output([*git, "status", "--porcelain", "--untracked-files=no"])),
        "remote": redact(_output([*git, "config", "--get", "remote.origin.url"])) or None,
    }


def _output(command: Sequence[str]) -> str:
    """Returns the standard output of a program; empty if it is missing, fails, or takes more than 10 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
