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


def start_ranks(
    world_size: int, *command: str, folder: Path, ranks_per_node: int | None = None, **variables: str
) -> list[ForkedProcess]:
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
        environment = {**{name: str(value) for name, value in place.items()}, **address, **variables}
        ranks.append(start_python(*command, folder=folder, **environment))
    return ranks


def run_ranks(
    world_size: int, *command: str, folder: Path, ranks_per_node: int | None = None, **variables: str
) -> list[tuple[int, str]]:
    """Returns the exit code of each rank, and what it printed."""
    return ends_of(start_ranks(world_size, *command, folder=folder, ranks_per_node=ranks_per_node, **variables))


def ends_of(ranks: list[ForkedProcess], timeout_s: float = SECONDS) -> list[tuple[int, str]]:
    """Waits for ranks, and returns the exit code of each and what it printed."""
    try:
        outputs = ["".join(rank.communicate(timeout=timeout_s)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode or 0, output) for rank, output in zip(ranks, outputs, strict=True)]
