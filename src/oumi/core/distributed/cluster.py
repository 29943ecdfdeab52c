# SPDX-License-Identifier: Apache-2.0
"""The machines of a run, as the scheduler that started this process describes them. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oumi.core.errors import ConfigError

DEFAULT_PORT = 8007
_POLARIS_GPUS = 4
"""Processes of a node under PBS, whose machines (Polaris) have so many GPUs."""
_SCONTROL_S = 5


@dataclass(frozen=True)
class Cluster:
    """The machines (nodes) of a run, and which of them this is."""

    source: str
    """The scheduler, as messages name it."""
    num_nodes: int = 1
    node_rank: int = 0
    master_addr: str | None = None
    """Address of the first node; None if there is only one, which needs none."""
    master_port: int | None = None
    procs_per_node: int | None = None
    """None to count the devices of this machine."""
    nodes: tuple[str, ...] = ()


def find_cluster(environ: Mapping[str, str] = os.environ) -> Cluster:
    """Returns the machines of the first scheduler that has left its variables; without one, only this machine.

    Raises:
        ConfigError: A variable is missing, is no number, or contradicts another one.
    """
    variables = {name: text for name, text in environ.items() if text}
    for name, detect in _SCHEDULERS.items():
        if name in variables:
            cluster = detect(variables)
            break
    else:
        cluster = Cluster("this machine", master_port=_port(variables, None))
    _check(cluster, variables)
    return cluster


def check_totals(cluster: Cluster, procs_per_node: int, environ: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError unless the run has as many processes as OUMI_TOTAL_NUM_GPUS says, if it is set."""
    if environ.get("OUMI_TOTAL_NUM_GPUS"):
        expected = _number(environ, "OUMI_TOTAL_NUM_GPUS", least=1)
        total = cluster.num_nodes * procs_per_node
        if expected != total:
            raise ConfigError(
                f"OUMI_TOTAL_NUM_GPUS is {expected}, but {cluster.source} gives {total}: {cluster.num_nodes} nodes "
                f"with {procs_per_node} processes each"
            )


def _sky(variables: Mapping[str, str]) -> Cluster:
    nodes = _lines(_required(variables, "SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK"))
    return Cluster(
        source="SkyPilot",
        num_nodes=len(nodes),
        node_rank=_number(variables, "SKYPILOT_NODE_RANK"),
        master_addr=nodes[0] if nodes else None,
        master_port=_port(variables),
        # Tasks without a GPU have 0, or an empty variable.
        procs_per_node=_number(variables, "SKYPILOT_NUM_GPUS_PER_NODE", default=0) or None,
        nodes=nodes,
    )


def _pbs(variables: Mapping[str, str]) -> Cluster:
    _required(variables, "PBS_JOBID", "PBS_NODEFILE")
    path = Path(variables["PBS_NODEFILE"])
    try:
        lines = _lines(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"PBS_NODEFILE: cannot read {path}: {error.strerror}") from error
    nodes = tuple(dict.fromkeys(lines))  # PBS may write a line for each CPU of a node
    rank = _number(variables, "PMI_RANK", default=0)
    return Cluster("PBS", len(nodes), rank, nodes[0] if nodes else None, DEFAULT_PORT, _POLARIS_GPUS, nodes)


def _slurm(variables: Mapping[str, str]) -> Cluster:
    if "SLURM_JOBID" not in variables:
        _required(variables, "SLURM_JOB_ID", "SLURM_NODELIST")
    nodes = _slurm_nodes(variables["SLURM_NODELIST"])
    if _number(variables, "SLURM_LOCALID", default=0):
        raise ConfigError(
            "srun started several tasks on this node, each of which would start all processes: use "
            "`srun --ntasks-per-node=1`"
        )
    if len(nodes) > 1:
        _required(variables, "SLURM_NODEID", "SLURM_NODELIST")
    node_rank = _number(variables, "SLURM_NODEID", default=0)
    return Cluster("Slurm", len(nodes), node_rank, nodes[0], _port(variables), None, nodes)


def _slurm_nodes(text: str) -> tuple[str, ...]:
    """Returns the names in a list such as `node[01-04]`; a plain one needs no command of Slurm."""
    if not set(text) & set("[]"):
        return tuple(text.split(","))
    command = ["scontrol", "show", "hostnames", text]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SCONTROL_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"SLURM_NODELIST is '{text}', and `{' '.join(command)}` cannot expand it: {error}") from error
    return _lines(done.stdout)


def _mpi(variables: Mapping[str, str]) -> Cluster:
    size = _number(variables, "OMPI_COMM_WORLD_SIZE", least=1)
    if _number(variables, "OMPI_COMM_WORLD_LOCAL_SIZE", default=1) > 1:
        raise ConfigError(
            "mpirun started several processes on this machine, each of which would start all ranks: use "
            "`mpirun --map-by ppr:1:node`"
        )
    rank = _number(variables, "OMPI_COMM_WORLD_RANK", default=0)
    return Cluster("MPI", size, rank, _address(variables, size), _port(variables))


def _torchrun(variables: Mapping[str, str]) -> Cluster:
    """Returns what variables named like torchrun's flags say, as Kubernetes operators set them."""
    size = _number(variables, "NNODES", least=1)
    rank = _number(variables, "NODE_RANK", default=None if size > 1 else 0)
    procs = _number(variables, "NPROC_PER_NODE", default=0) or None
    return Cluster("NNODES", size, rank, _address(variables, size), _port(variables), procs)


_SCHEDULERS: dict[str, Callable[[Mapping[str, str]], Cluster]] = {
    "SKYPILOT_NODE_RANK": _sky,
    "PBS_NODEFILE": _pbs,
    "SLURM_NODELIST": _slurm,
    "OMPI_COMM_WORLD_SIZE": _mpi,
    "NNODES": _torchrun,
}
"""The variable that shows a scheduler, and how its description is read; the first one that is set wins."""


def _check(cluster: Cluster, variables: Mapping[str, str]) -> None:
    source, nodes = cluster.source, cluster.num_nodes
    if nodes < 1:
        raise ConfigError(f"{source} gives no nodes for this job: expected at least one")
    if cluster.node_rank >= nodes:
        raise ConfigError(
            f"{source} gives this node rank {cluster.node_rank}: expected a number below {nodes}, its nodes"
        )
    if "OUMI_NUM_NODES" in variables and _number(variables, "OUMI_NUM_NODES", least=1) != nodes:
        raise ConfigError(f"OUMI_NUM_NODES is {variables['OUMI_NUM_NODES']}, but {source} gives {nodes} nodes")
    address = variables.get("OUMI_MASTER_ADDR")
    if address and cluster.nodes and address not in cluster.nodes:
        raise ConfigError(
            f"OUMI_MASTER_ADDR is {address}, which is none of the nodes that {source} gives: {', '.join(cluster.nodes)}"
        )


def _address(variables: Mapping[str, str], num_nodes: int) -> str | None:
    if num_nodes > 1 and "MASTER_ADDR" not in variables:
        raise ConfigError(f"MASTER_ADDR is not set: expected the address of the first of {num_nodes} nodes")
    return variables.get("MASTER_ADDR")


def _port(variables: Mapping[str, str], default: int | None = DEFAULT_PORT) -> int | None:
    if "MASTER_PORT" not in variables:
        return default
    port = _number(variables, "MASTER_PORT")
    if not 1024 <= port < 1 << 16:
        raise ConfigError(f"MASTER_PORT is {port} in the environment: expected a port from 1024 to 65535")
    return port


def _number(variables: Mapping[str, str], name: str, least: int = 0, default: int | None = None) -> int:
    text = variables.get(name) or ("" if default is None else str(default))
    if not text:
        raise ConfigError(f"{name} is not set in the environment: expected a number >= {least}")
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is '{text}' in the environment: expected a number >= {least}")
    return int(text)


def _required(variables: Mapping[str, str], name: str, shown_by: str) -> str:
    if name not in variables:
        raise ConfigError(f"{shown_by} is set in the environment, but {name} is not: expected both")
    return variables[name]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
