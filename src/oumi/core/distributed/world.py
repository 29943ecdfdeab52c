# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: who am I, how many are we, and sums over all of us."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from oumi.core.errors import ConfigError
from oumi.core.system import host


@dataclass(frozen=True)
class World:
    """One process of a run."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[World]:
        """Yields this process's place among the processes of the run."""
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            if not os.environ.get(name, "0").isdecimal():
                raise ConfigError(f"{name} is '{os.environ[name]}' in the environment: must be a number, or not set")
        size = max(1, int(os.environ.get("WORLD_SIZE", "1")))
        if size > 1:
            raise ConfigError(
                f"WORLD_SIZE is {size}: runs over several processes are not built yet; "
                "start one process with `oumi train`"
            )
        if torch.get_num_threads() > host.num_cpus():
            torch.set_num_threads(host.num_cpus())
        yield cls(rank=0, size=size, device=torch.device(host.describe_host().device))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Returns the sum of `value` over all ranks."""
        assert self.size == 1, "World.start refuses more than one process"
        return value


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch, so that the same command gives the same run."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:  # cuBLAS adds in one order only where its workspace is of one size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
