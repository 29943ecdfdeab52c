# SPDX-License-Identifier: Apache-2.0
"""Runs a config again and again, killed each time, and at last to its end. Started by the test of the law."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask for GPUs in the usual way bars a child from using them

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from oumi.core.trainers import native  # noqa: F401  imported here, so that a child begins to train at once


def attempt(config: TrainingConfig, seconds: float | None) -> int:
    """Trains in a child, killed after `seconds`; returns its wait status."""
    child = os.fork()
    if child == 0:
        train(config)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Kills attempts at moments drawn from a seed, then lets one finish; prints how many were killed."""
    config = TrainingConfig.from_yaml(sys.argv[1])
    rng = random.Random(int(sys.argv[2]))
    num_kills, last_moment_s = int(sys.argv[3]), float(sys.argv[4])
    killed = sum(attempt(config, rng.uniform(0.3, last_moment_s)) == signal.SIGKILL for _ in range(num_kills))
    assert attempt(config, None) == 0
    print(killed)


main()
