# SPDX-License-Identifier: Apache-2.0
"""The machines of a run are those that its scheduler describes; contradictions are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.distributed.cluster import Cluster, check_totals, find_cluster
from oumi.core.errors import ConfigError

SKY = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
SLURM = {"SLURM_NODELIST": "node1,node2", "SLURM_JOBID": "7", "SLURM_NODEID": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "m"}
TORCHRUN = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "3000", "NPROC_PER_NODE": "4"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SKY, Cluster("SkyPilot", 2, 1, "10.0.0.1", 8007, 8, ("10.0.0.1", "10.0.0.2"))),
        (SKY | SLURM, Cluster("SkyPilot", 2, 1, "10.0.0.1", 8007, 8, ("10.0.0.1", "10.0.0.2"))),
        (SKY | {"SKYPILOT_NODE_IPS": "a", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "0"},
         Cluster("SkyPilot", 1, 0, "a", 8007, None, ("a",))),
        (SLURM, Cluster("Slurm", 2, 1, "node1", 8007, None, ("node1", "node2"))),
        (SLURM | {"MASTER_PORT": "9000"}, Cluster("Slurm", 2, 1, "node1", 9000, None, ("node1", "node2"))),
        ({"SLURM_NODELIST": "node1", "SLURM_JOB_ID": "7"}, Cluster("Slurm", 1, 0, "node1", 8007, None, ("node1",))),
        (MPI, Cluster("MPI", 3, 2, "m", 8007)),
        (TORCHRUN, Cluster("NNODES", 2, 1, "head", 3000, 4)),
        ({}, Cluster("this machine")),
        ({"MASTER_PORT": "9000", "SLURM_NODELIST": ""}, Cluster("this machine", master_port=9000)),
    ],
)  # fmt: skip
def test_the_machines_are_those_of_the_scheduler(variables: dict[str, str], expected: Cluster) -> None:
    assert find_cluster(variables) == expected


def test_pbs_names_its_nodes_in_a_file(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("x1\nx1\nx2\n")
    variables = {"PBS_NODEFILE": str(nodes), "PBS_JOBID": "9", "PMI_RANK": "1", "MASTER_PORT": "9000"}
    assert find_cluster(variables) == Cluster("PBS", 2, 1, "x1", 8007, 4, ("x1", "x2"))


def test_slurm_expands_its_list_of_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[01-02]" ] && printf "node01\\nnode02\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_cluster(SLURM | {"SLURM_NODELIST": "node[01-02]"}).nodes == ("node01", "node02")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SKYPILOT_NODE_RANK": "0"}, "SKYPILOT_NODE_RANK is set in the environment, but SKYPILOT_NODE_IPS is not"),
        (SKY | {"SKYPILOT_NODE_RANK": "2"}, "gives this node rank 2: expected a number below 2"),
        (SKY | {"SKYPILOT_NODE_IPS": "\n"}, "SkyPilot gives no nodes"),
        (SKY | {"SKYPILOT_NODE_RANK": "x"}, "SKYPILOT_NODE_RANK is 'x' in the environment: expected a number >= 0"),
        ({"PBS_NODEFILE": "/none"}, "PBS_NODEFILE is set in the environment, but PBS_JOBID is not"),
        ({"PBS_NODEFILE": "/none", "PBS_JOBID": "1"}, "PBS_NODEFILE: cannot read /none: No such file"),
        ({"SLURM_NODELIST": "a"}, "SLURM_NODELIST is set in the environment, but SLURM_JOB_ID is not"),
        ({"SLURM_NODELIST": "a,b", "SLURM_JOBID": "1"}, "set in the environment, but SLURM_NODEID is"),
        (SLURM | {"SLURM_LOCALID": "3"}, "srun --ntasks-per-node=1"),
        (SLURM | {"MASTER_PORT": "80"}, "MASTER_PORT is 80 in the environment: expected a port from 1024 to 65535"),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "mpirun --map-by ppr:1:node"),
        (MPI | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set: expected the address of the first of 3 nodes"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "NODE_RANK is not set in the environment"),
        ({"NNODES": "1:4"}, "NNODES is '1:4' in the environment"),
        (SKY | {"OUMI_NUM_NODES": "3"}, "OUMI_NUM_NODES is 3, but SkyPilot gives 2 nodes"),
        (SKY | {"OUMI_MASTER_ADDR": "10.0.0.9"}, "OUMI_MASTER_ADDR is 10.0.0.9, which is none of the nodes"),
    ],
)  # fmt: skip
def test_a_contradiction_is_reported(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        find_cluster(variables)


def test_the_number_of_processes_is_the_one_that_the_job_expects() -> None:
    check_totals(find_cluster(SKY), 8, {"OUMI_TOTAL_NUM_GPUS": "16"})
    with pytest.raises(ConfigError, match="OUMI_TOTAL_NUM_GPUS is 8, but SkyPilot gives 16: 2 nodes with 8 processes"):
        check_totals(find_cluster(SKY), 8, {"OUMI_TOTAL_NUM_GPUS": "8"})
