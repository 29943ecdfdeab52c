# SPDX-License-Identifier: Apache-2.0
"""Starts the processes of this machine with torch's elastic agent, and reports the first failure once and last."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn
from uuid import uuid4

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, launch_agent
from torch.distributed.run import config_from_args, determine_local_world_size, get_args_parser

from oumi.core.distributed.cluster import Cluster, check_totals, find_cluster
from oumi.core.distributed.rendezvous import wait_for_listener
from oumi.core.errors import ConfigError, OumiError, PreemptedError, StorageError
from oumi.core.system import host
from oumi.core.system.exits import LAUNCH_DIR, LAUNCHER_PID, RESTARTS, Outcome, read_outcomes

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that go on to the processes, which then save a checkpoint; schedulers warn by the last two."""
_SHUTDOWN_S = 600
"""Time for a checkpoint after such a signal, before the processes are killed."""
_NODES_S = 300
"""How long the machines of a run wait for each other."""
_NOTE_S = 10
"""Time between two lines that tell that they still do."""
_FINAL_CODES = (2, 65, 73, 76, 77)
"""Exit codes that another attempt would end with, too: a mistake in the config, in rows; a loss that is not finite."""
_COMMAND_LINE = Cluster("the command line")


class LaunchedError(OumiError):
    """A process of the run failed: its exit code becomes that of the launcher."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(arguments: Sequence[str]) -> None:
    """Starts the processes that arguments of torchrun ask for, and waits for them.

    What they leave open comes from the scheduler: the number of machines, which of them this is, and where they meet.

    Raises:
        ConfigError: The arguments or the scheduler's variables are wrong, or the machines cannot reach each other.
        LaunchedError: A process failed.
        PreemptedError: A signal stopped the run.
    """
    args = parse(arguments, _COMMAND_LINE if _names_one_machine(arguments) else find_cluster())
    if _is_plain_run(args):
        _become([sys.executable, "-m", args.training_script, *args.training_script_args])
    procs = _num_processes(args)
    if "OMP_NUM_THREADS" not in os.environ and procs > 1:  # the agent would set 1, however many cores there are
        os.environ["OMP_NUM_THREADS"] = str(max(1, host.num_cpus() // procs))
    if args.rdzv_backend == "c10d":
        # Each attempt gets a store of its own: a shared one keeps the addresses of the last attempt.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        with _quiet_agent():
            config, command, rest = config_from_args(args)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"torchrun: {error}") from error
    if not isinstance(command, str):
        raise ConfigError("torchrun: --run-path is not supported; name the script, or a module with -m")
    with _outcomes_dir() as folder, _quiet_agent(), _attempts_noted(config, folder):
        _run_agent(config, command, rest, folder)


def _parser() -> ArgumentParser:
    parser = get_args_parser()
    parser.prog = "oumi distributed torchrun"
    return parser


def _names_one_machine(arguments: Sequence[str]) -> bool:
    """Returns True if flags ask for this machine alone: the variables of a scheduler then do not matter."""
    parser = _parser()
    if "PET_NNODES" not in os.environ:
        parser.set_defaults(nnodes="")
    args = parser.parse_args(list(arguments))
    return args.standalone or args.nnodes in ("1", "1:1")


def parse(arguments: Sequence[str], cluster: Cluster) -> Namespace:
    """Returns the arguments of torchrun; what neither they nor PET_* variables set is taken from a cluster."""
    parser = _parser()
    defaults = {
        "nnodes": str(cluster.num_nodes),
        "node_rank": cluster.node_rank,
        "nproc_per_node": str(cluster.procs_per_node or torch.cuda.device_count() or 1),
        # One machine takes any free port, so that several runs can share it.
        "master_addr": cluster.master_addr if cluster.num_nodes > 1 else None,
        "master_port": cluster.master_port if cluster.num_nodes > 1 or os.environ.get("MASTER_PORT") else None,
        "signals_to_handle": ",".join(name for name in _SIGNALS if not _is_ignored(name)),
        "shutdown_timeout": _SHUTDOWN_S,
    }
    is_open = {name: value is not None and f"PET_{name.upper()}" not in os.environ for name, value in defaults.items()}
    parser.set_defaults(**{name: value for name, value in defaults.items() if is_open[name]})
    args = parser.parse_args(list(arguments))
    if args.nnodes != str(cluster.num_nodes) and cluster != _COMMAND_LINE:
        return parse(arguments, _COMMAND_LINE)  # other machines than those of the scheduler, or only this one
    if args.standalone:
        args.nnodes = "1"
    else:
        _check_machines(args)
    is_open_place = args.rdzv_backend == "static" and not args.rdzv_endpoint
    if args.standalone or (is_open_place and args.nnodes in ("1", "1:1") and args.master_port is None):
        args.rdzv_backend, args.rdzv_endpoint, args.rdzv_id = "c10d", "localhost:0", uuid4().hex
        # The name of a container or a laptop is often one that it cannot resolve itself.
        args.local_addr = args.local_addr or "localhost"
    elif is_open_place and args.max_restarts and args.nnodes not in ("1", "1:1"):
        # Only this one lets the machines restart together.
        args.rdzv_backend, args.rdzv_endpoint = "c10d", f"{args.master_addr}:{args.master_port or 29500}"
        args.rdzv_conf = _joined(f"is_host={int(args.node_rank == 0)}", args.rdzv_conf)
        # Names of machines need not be known to the others, their addresses are.
        address = cluster.nodes[args.node_rank] if cluster.nodes else args.master_addr if args.node_rank == 0 else None
        args.local_addr = args.local_addr or address
    if "timeout=" not in args.rdzv_conf:
        name = "timeout" if args.rdzv_backend == "static" else "join_timeout"
        args.rdzv_conf = _joined(args.rdzv_conf, f"{name}={_NODES_S}")
    if args.master_port is None:
        args.master_port = 29500
    if cluster != _COMMAND_LINE:
        check_totals(cluster, _num_processes(args))
    return args


def _joined(*settings: str) -> str:
    return ",".join(filter(None, settings))


def _check_machines(args: Namespace) -> None:
    least, _, most = args.nnodes.rpartition(":")
    if not (most.isdecimal() and (least or most).isdecimal() and 0 < int(least or most) <= int(most)):
        raise ConfigError(f"--nnodes is '{args.nnodes}': expected a number > 0, or a range such as 1:4")
    if not 0 <= args.node_rank < int(most):
        raise ConfigError(f"--node-rank is {args.node_rank}: expected a number from 0 to {int(most) - 1}, see --nnodes")


def _num_processes(args: Namespace) -> int:
    try:
        count = int(determine_local_world_size(args.nproc_per_node))
    except ValueError as error:
        raise ConfigError(f"--nproc-per-node is '{args.nproc_per_node}': {error}") from error
    if count < 1:
        raise ConfigError(f"--nproc-per-node is {count}: expected a number > 0, auto, cpu or gpu")
    return count


def _is_plain_run(args: Namespace) -> bool:
    """Returns True if one process of Oumi does the whole run: it needs no agent beside it."""
    is_oumi = args.module and args.training_script == "oumi" and not args.no_python
    return is_oumi and args.nnodes == "1" and _num_processes(args) == 1 and not args.max_restarts


def _become(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def _run_agent(config: LaunchConfig, command: str, rest: list[str], folder: Path) -> None:
    failures: dict[int, ProcessFailure] = {}
    stopped_by = ""
    try:
        _wait_for_first_machine(config)
        launch_agent(config, command, rest)
    except ChildFailedError as error:
        failures = error.failures
    except SignalException as error:
        stopped_by = signal.Signals(error.sigval).name
    except (distributed.DistError, RendezvousError) as error:
        raise ConfigError(_meeting_problem(config, error)) from error
    except (ImportError, ValueError) as error:
        if config.rdzv_backend in ("static", "c10d"):
            raise
        raise ConfigError(f"--rdzv-backend is '{config.rdzv_backend}': {error}") from error
    except OSError as error:
        is_mistake = isinstance(error, FileNotFoundError | PermissionError)  # a command that does not exist
        kind = ConfigError if is_mistake else StorageError
        raise kind(f"the processes cannot be started: {error}") from error
    for name in _SIGNALS:  # only a message is left to print
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    outcomes = read_outcomes(folder)
    if not stopped_by and not failures:
        return
    first = _first_failure(failures, outcomes)
    if first is None or first.exit_code == PreemptedError.exit_code:
        message = (
            first.message if first else f"stopped by {stopped_by} before the first step; run the same command again"
        )
        raise PreemptedError(message)
    raise _error_of(first, is_said=first.rank in outcomes)


def _error_of(first: Outcome, is_said: bool) -> LaunchedError:
    """Returns the error of a launcher whose ranks failed, after the traceback of the first one.

    Args:
        first: How the rank ended that failed first.
        is_said: The rank says it itself; otherwise the message goes on after its name.
    """
    if first.trace:
        print(first.trace, end="", file=sys.stderr)
    # One that ended since another did names both.
    is_named = first.cause not in (None, first.rank)
    place = f"rank {first.rank} on {socket.gethostname()}{':' if is_said else ''} "
    return LaunchedError(first.message if is_named else place + first.message, first.exit_code)


def _first_failure(failures: dict[int, ProcessFailure], outcomes: dict[int, Outcome]) -> Outcome | None:
    """Returns how the rank ended that failed first: the others did since it failed, or by the agent's SIGTERM."""
    of_processes = {rank: _outcome_of_process(rank, failure) for rank, failure in failures.items()}
    ends = [outcome for outcome in {**of_processes, **outcomes}.values() if outcome.exit_code]
    return min(ends, key=lambda end: (end.cause is not None, end.time_s), default=None)


def _outcome_of_process(rank: int, failure: ProcessFailure) -> Outcome:
    """Returns the outcome of a process that has left none itself."""
    if failure.exitcode >= 0:
        message = f"exited with code {failure.exitcode}; its own messages say why"
        return Outcome(rank, failure.exitcode, message, time_s=failure.timestamp)
    message = f"was killed by {failure.signal_name()}"
    if -failure.exitcode == signal.SIGKILL:
        message += " (the system does this when memory runs out)"
    # The agent ends the others by SIGTERM once one has failed.
    cause = rank if -failure.exitcode == signal.SIGTERM else None
    return Outcome(rank, 1, message, cause=cause, time_s=failure.timestamp)


def _wait_for_first_machine(config: LaunchConfig) -> None:
    """Waits until the first machine listens, if this is another one: torch would wait where no signal interrupts it."""
    settings, (address, _, port) = config.rdzv_configs, config.rdzv_endpoint.rpartition(":")
    is_first = settings.get("rank") == 0 if config.rdzv_backend == "static" else settings.get("is_host") != "0"
    if not is_first and port.isdecimal():
        wait_s = float(settings.get("timeout") or settings.get("join_timeout") or _NODES_S)
        problem = wait_for_listener(address.strip("[]"), int(port), time.monotonic() + wait_s)
        if problem:
            raise ConfigError(_meeting_problem(config, TimeoutError(problem)))


def _meeting_problem(config: LaunchConfig, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    place = config.rdzv_endpoint
    if "EADDRINUSE" in str(error):
        port = place.rpartition(":")[2]
        return f"port {port} of this machine is in use by another process: set MASTER_PORT to a free one"
    return (
        f"the {config.max_nodes} machines of this run did not meet at {place}: {reason}. Start the same command on "
        "each of them; the first one has to be reachable there"
    )


@contextmanager
def _outcomes_dir() -> Iterator[Path]:
    """Yields a folder into which the processes write how they ended."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="oumi-launch-"))
    except OSError as error:
        raise StorageError(f"the launcher needs a folder for temporary files: {error}; set TMPDIR to one") from error
    os.environ[LAUNCH_DIR], os.environ[LAUNCHER_PID] = str(folder), str(os.getpid())
    try:
        yield folder
    finally:
        for name in (LAUNCH_DIR, LAUNCHER_PID, RESTARTS):
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silences the agent's own log, unless LOGLEVEL asks for it: it repeats each failure several times."""
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class _Attempts(LogsSpecs):
    """The agent's settings of logs, which it asks for whenever all machines have met and it starts its processes."""

    def __init__(self, inner: LogsSpecs, folder: Path, is_started: Event) -> None:
        self._inner, self._folder, self._is_started = inner, folder, is_started
        self._num_starts = 0

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Returns the files of logs; before another attempt, shows why the last one failed.

        Raises:
            LaunchedError: It failed by what another attempt cannot change.
        """
        os.environ[RESTARTS] = str(self._num_starts)  # the processes inherit it
        self._num_starts += 1
        self._is_started.set()
        first = _first_failure({}, read_outcomes(self._folder))
        if first is not None and first.cause is None:
            error = _error_of(first, is_said=True)
            if first.exit_code in _FINAL_CODES:
                raise error
            print(f"Error: {error}", file=sys.stderr, flush=True)
        return self._inner.reify(envs)

    @property
    def root_log_dir(self) -> str:
        return str(self._inner.root_log_dir)


@contextmanager
def _attempts_noted(config: LaunchConfig, folder: Path) -> Iterator[None]:
    """Prints now and then that other machines have not come yet, and why an attempt failed: the agent tells neither."""
    is_started = Event()

    def note() -> None:
        began = time.monotonic()
        while not is_started.wait(_NOTE_S):
            place, waited_s = config.rdzv_endpoint, time.monotonic() - began
            print(
                f"waiting for the {config.max_nodes} machines of this run at {place} ({waited_s:.0f} s)",
                file=sys.stderr,
            )

    assert config.logs_specs is not None
    config.logs_specs = _Attempts(config.logs_specs, folder, is_started)
    Thread(target=note, daemon=True).start()
    try:
        yield
    finally:
        is_started.set()


def _is_ignored(name: str) -> bool:
    """Returns True if a signal is ignored, as `nohup` wants it for SIGHUP: the agent would take it all the same."""
    return signal.getsignal(getattr(signal, name)) is signal.SIG_IGN
