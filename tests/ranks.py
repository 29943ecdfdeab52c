# SPDX-License-Identifier: Apache-2.0
"""Runs over several processes of this machine, as a launcher starts them."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.fork_server import ForkedProcess, start_python

SECONDS = 120


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(world_size: int, *command: str, folder: Path, ranks_per_node: int | None = None) -> list[ForkedProcess]:
    """Starts a Python command (`-m oumi train ...`) once for each rank; each is a process of its own."""
    port, ranks, local_size = free_port(), [], ranks_per_node or world_size
    for rank in range(world_size):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank % local_size,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": local_size,
        }
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {**{name: str(value) for name, value in place.items()}, **address}
        ranks.append(start_python(*command, folder=folder, **environment))
    return ranks


def run_ranks(world_size: int, *command: str, folder: Path, ranks_per_node: int | None = None) -> list[tuple[int, str]]:
    """Returns the exit code of each rank, and what it printed."""
    ranks = start_ranks(world_size, *command, folder=folder, ranks_per_node=ranks_per_node)
    try:
        outputs = ["".join(rank.communicate(timeout=SECONDS)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode or 0, output) for rank, output in zip(ranks, outputs, strict=True)]
