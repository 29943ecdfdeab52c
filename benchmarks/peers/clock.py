# SPDX-License-Identifier: Apache-2.0
"""Shared by all drivers: the job, the end of each step, and the result. Imported by path, without dependencies.

A driver is a script that the Python of a peer's own environment runs. It gets the path of a `job.json` and writes the
file that the job names as `result`; each rank of a run but the first writes one beside it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def load_job() -> dict[str, Any]:
    """Returns the job that the command line names."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    return job


class Clock:
    """Notes the end of each optimizer step.

    That is seconds of the wall clock, seconds of CPU, minor page faults, and bytes sent within this machine.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.losses: list[float] = []
        self._marks: list[tuple[float, float, int, int]] = []

    def watch_optimizers(self) -> None:
        """Counts the end of an optimizer's step as the end of a step."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda *_: self.step_ended())

    def watch_losses(self, trainer_class: Any) -> None:
        """Reads the losses from the logs of a trainer class of transformers."""
        log: Callable[..., None] = trainer_class.log

        def logged(trainer: Any, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))
            log(trainer, logs, *arguments, **named)

        trainer_class.log = logged

    def step_ended(self) -> None:
        """Notes that a step has ended now."""
        # Workers of a data loader count too.
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        faults = sum(usage.ru_minflt for usage in usages)
        self._marks.append((time.monotonic(), cpu, faults, loopback_bytes()))

    def write_result(self, peak: int | None = None) -> None:
        """Writes the measurements of this rank; its peak memory is that of the process unless it is given."""
        result = {
            "marks": self._marks,
            "losses": self.losses,
            "peak_bytes": peak_bytes() if peak is None else peak,
            # Only what was imported: an installed package need not have taken part.
            "versions": {name: version(name) for name in self.job["packages"] if name in sys.modules},
        }
        result_path(self.job).write_text(json.dumps(result))


def rank() -> int:
    """Returns the rank of this process as a launcher set it, 0 without one."""
    return int(os.environ.get("RANK", "0"))


def result_path(job: dict[str, Any]) -> Path:
    """Returns the file for the result of this rank: `result.json` of the first one, `result.1.json` and so on."""
    path = Path(job["result"])
    return path.with_suffix(f".{rank()}.json") if rank() else path


def keep_order() -> None:
    """Makes torch's data loaders return rows in the order of the file instead of shuffling them."""
    from torch.utils.data import RandomSampler

    RandomSampler.__iter__ = lambda self: iter(range(len(self.data_source)))  # type: ignore[method-assign]


def peak_bytes() -> int:
    """Returns the peak resident memory of this process."""
    # Not getrusage, whose peak a process inherits from its parent.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def loopback_bytes() -> int:
    """Returns the bytes that processes of this machine have sent to each other since boot, 0 where none are counted."""
    devices = Path("/proc/net/dev").read_text().splitlines()
    line = next((line for line in devices if line.strip().startswith("lo:")), "")
    return int(line.split()[9]) if line else 0  # bytes sent come after eight counts of what was received
