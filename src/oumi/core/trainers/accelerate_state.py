# SPDX-License-Identifier: Apache-2.0
"""Keeps what Accelerate changes in a process within one run: environment variables and shared objects."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import distributed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from oumi.core.distributed.world import World
from oumi.core.log import logger

_OWN = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
"""Beginnings of the variables by which a launcher configures Accelerate."""
_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def contain_accelerate(world: World, has_deepspeed: bool = False) -> Callable[[], None]:
    """Lets Accelerate start anew, with the settings of the run alone; returns the function that restores the process.

    Until then, its environment variables are those that the run sets: the plan decides, not the launcher. DeepSpeed
    needs a process group also for a single process.
    """
    environment = dict(os.environ)
    had_group = distributed.is_initialized()
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(name, "").lower() in ("1", "true"):
            section = name.rpartition("_")[2].lower()
            logger.warning("%s in the environment is not read: the section %s of the config decides", name, section)
    for name in [name for name in os.environ if name.startswith(_OWN)]:
        del os.environ[name]
    if world.size == 1 and has_deepspeed:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    elif world.size == 1:  # otherwise Accelerate would start a process group of one
        for name in _RANK:
            os.environ.pop(name, None)
    # Without it, Accelerate sets its own number of threads on a CPU.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    _forget()

    def restore() -> None:
        _forget()
        if distributed.is_initialized() and not had_group:
            distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)

    return restore


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forget() -> None:
    unset_hf_deepspeed_config()  # with that of a run, transformers would divide every model that is loaded
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
