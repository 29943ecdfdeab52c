# SPDX-License-Identifier: Apache-2.0
"""`oumi distributed`: starts the processes of a run, on one machine or on each of several."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Annotated

import typer

from oumi.core.errors import ConfigError
from oumi.core.log import LEVELS

PASSED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
"""Settings of a command whose arguments, `--help` among them, belong to another program."""
LOG_LEVEL = typer.Option("--log-level", "-log", help="What the launcher logs: debug, info, warning, error.")
distributed_app = typer.Typer(no_args_is_help=True, help="Start one run in several processes.")


@distributed_app.command(context_settings=PASSED_ON)
def torchrun(context: typer.Context, log_level: Annotated[str | None, LOG_LEVEL] = None) -> None:
    """Start processes with torchrun: oumi distributed torchrun -m oumi train -c FILE.

    The number of machines and where they meet come from SkyPilot, PBS, Slurm, MPI or variables such as NNODES; the
    number of processes from the GPUs of this machine. Flags of torchrun override both.
    """
    start(context.args, log_level)


@distributed_app.command(context_settings=PASSED_ON)
def accelerate(context: typer.Context, log_level: Annotated[str | None, LOG_LEVEL] = None) -> None:
    """Start processes with accelerate: oumi distributed accelerate launch -m oumi train -c FILE."""
    from oumi.core.distributed.cluster import DEFAULT_PORT, check_totals, find_cluster

    _set_log_level(log_level)
    program = shutil.which("accelerate")
    if program is None:
        raise ConfigError("the command `accelerate` is not on PATH: install it with `pip install accelerate`")
    command, *rest = context.args or ["--help"]
    flags: list[str] = []
    if command == "launch":
        import torch

        cluster = find_cluster()
        procs = cluster.procs_per_node or torch.cuda.device_count() or 1
        check_totals(cluster, procs)
        flags = [f"--num_machines={cluster.num_nodes}", f"--machine_rank={cluster.node_rank}"]
        flags += [f"--num_processes={cluster.num_nodes * procs}"]
        if cluster.master_addr:
            flags += [f"--main_process_ip={cluster.master_addr}"]
            flags += [f"--main_process_port={cluster.master_port or DEFAULT_PORT}"]
    os.execv(program, [program, command, *flags, *rest])


def _set_log_level(level: str | None) -> None:
    """Sets the level of torch's agent, which reads it from LOGLEVEL when it is imported, and ends at any other word."""
    level = level or os.environ.get("LOGLEVEL")
    if not level:
        return
    if level.lower() not in LEVELS:
        raise ConfigError(f"the log level (--log-level or LOGLEVEL) is '{level}': expected one of {', '.join(LEVELS)}")
    os.environ["LOGLEVEL"] = level.upper()


def start(arguments: Sequence[str], log_level: str | None = None) -> None:
    """Runs torchrun's arguments to the end of all processes, and ends with the error of the first one that failed."""
    from oumi.core.system.signals import signals_answered

    _set_log_level(log_level)
    with signals_answered():  # until the agent takes them over, which has to import torch first
        from oumi.core.distributed.launch import launch

        launch(arguments)


def start_here(nproc_per_node: str, context: typer.Context, *options: str) -> None:
    """Runs the command of a context, with its options and overrides, in several processes of this machine."""
    level = context.parent.params["log_level"] if context.parent else "info"
    flags = [] if nproc_per_node == "auto" else [f"--nproc-per-node={nproc_per_node}"]
    command = ["oumi", f"--log-level={level}", str(context.info_name)]
    start(["--standalone", *flags, "-m", *command, *options, *context.args])
