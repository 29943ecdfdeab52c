# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a run meet at its start, and who is missing if they do not."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import TypeVar

from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore

from oumi.core.errors import ConfigError

Answer = TypeVar("Answer")
_LOCAL_START_S, _START_S = 30.0, 300.0
"""How long ranks wait for each other where all are on one machine, and otherwise."""
_NOTE_S = 10.0
"""Time between two lines that tell what is waited for."""
_POLL_S = 0.1
_ANSWER_S = 5.0
"""How long the others wait for the decision of rank 0 beyond its own time, and it for them to read it."""


@dataclass(frozen=True)
class Place:
    """One rank among all of a run, and where it runs."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str = ""
    machine: str = ""
    """Digest of the machine and its process ids: processes with the same one see each other."""
    pid: int = 0
    nonce: str = ""
    """Tells this start of the process from all others."""

    @classmethod
    def read(cls) -> Place:
        """Returns the place of this process, as a launcher set it in the environment.

        Raises:
            ConfigError: The variables contradict each other.
        """
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        # Job scripts leave variables empty that they do not use.
        texts = {name: os.environ.get(name) or str(default) for name, default in defaults.items()}
        for name, text in texts.items():
            least = 1 if name.endswith("SIZE") else 0
            if not text.isdecimal() or int(text) < least:
                raise ConfigError(f"{name} is '{text}' in the environment: expected a number >= {least}, or not set")
        rank, size, local_rank, local_size = map(int, texts.values())
        if rank >= size:
            raise ConfigError(f"RANK is {rank} in the environment: expected a number below WORLD_SIZE, {size}")
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if size > 1 and missing:
            raise ConfigError(
                f"WORLD_SIZE is {size} in the environment, but {', '.join(missing)} not set: start the ranks with a "
                "launcher such as `oumi distributed torchrun`"
            )
        return cls(rank, size, local_rank, local_size, socket.gethostname(), _machine(), os.getpid(), token_hex(8))

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Meeting:
    """All ranks of a run after they have met."""

    store: Store
    """Keys that all of them share; another attempt, or another run in the same processes, has its own."""
    places: list[Place]


def meet(place: Place) -> Meeting:
    """Waits until all ranks of a run are there.

    Raises:
        ConfigError: They cannot reach each other, some did not come in time, or they disagree on how many they are.
    """
    default_s = _LOCAL_START_S if place.local_size == place.size else _START_S
    wait_s = seconds_of("OUMI_START_TIMEOUT_S", default_s)
    deadline = time.monotonic() + wait_s
    store = _open_store(place, wait_s, deadline)
    try:
        meeting, problem = _gather(place, store, wait_s, deadline) if place.rank == 0 else _join(place, store, deadline)
    except distributed.DistError as error:
        reason = _first_line(error)
        raise ConfigError(
            f"rank {place.rank} of {place.size}: rank 0 ended while it was waited for ({reason})"
        ) from error
    if problem:
        raise ConfigError(problem)
    return meeting


def seconds_of(name: str, default: float) -> float:
    """Returns a time in seconds from the environment; raises ConfigError if it is no number >= 0."""
    text = os.environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{name} is '{text}' in the environment: expected seconds >= 0, or not set")
    return seconds


def _open_store(place: Place, wait_s: float, deadline: float) -> Store:
    """Returns the store of the run, which rank 0 opens, or the launcher before it."""
    address, port_text = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port_text.isdecimal() or not 0 < int(port_text) < 1 << 16:
        raise ConfigError(f"MASTER_PORT is '{port_text}' in the environment: expected a port from 1 to 65535")
    port, timeout = int(port_text), timedelta(seconds=max(wait_s, 1.0))
    is_opened_here = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not is_opened_here:
        note = f"rank {place.rank}: waiting for rank 0 at {address}:{port}"
        problem = wait_for_listener(address, port, deadline, note, place.local_rank == 0)
        if problem:
            raise ConfigError(
                f"rank {place.rank} of {place.size} on {place.host}: rank 0 does not answer at {address}:{port} within "
                f"{wait_s:.0f} s ({problem}). Is it started, is MASTER_ADDR right, does a firewall close MASTER_PORT?"
            )
    try:
        return _within(
            wait_s, lambda: TCPStore(address, port, place.size, is_opened_here, timeout, wait_for_workers=False)
        )
    except (distributed.DistError, TimeoutError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise ConfigError(
                f"port {port} of {place.host} is in use by another process: set MASTER_PORT to a free port, the same "
                "one for all ranks"
            ) from error
        raise ConfigError(
            f"rank {place.rank} of {place.size}: what listens at {address}:{port} is no rank 0 of a run "
            f"({_first_line(error)}); set MASTER_ADDR and MASTER_PORT to a free port of the machine of rank 0"
        ) from error


def _within(seconds: float, make: Callable[[], Answer]) -> Answer:
    """Returns what a call returns; raises TimeoutError if it takes longer, as where a stranger listens at a port."""
    call: Future[Answer] = Future()

    def run() -> None:
        try:
            call.set_result(make())
        except BaseException as error:
            call.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return call.result(max(seconds, 1.0))
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {seconds:.0f} s") from None


def wait_for_listener(address: str, port: int, deadline: float, note: str = "", is_noted: bool = True) -> str:
    """Waits until something listens at an address, and returns why nothing did before a deadline, or an empty text.

    torch itself would wait in silence, and no signal could interrupt it.
    """

    def connect() -> bool | OSError:
        try:
            socket.create_connection((address, port), timeout=_ANSWER_S).close()
        except OSError as error:  # also a name that is not known yet: clusters publish names late
            return error
        return True

    answer = _poll(connect, deadline, note, is_noted)
    return "" if answer is True else str(answer)


def _gather(main: Place, launcher_store: Store, wait_s: float, deadline: float) -> tuple[Meeting, str]:
    """Returns the meeting that rank 0 opens, and what keeps the run from starting."""
    # The store of a launcher outlives its ranks: without a prefix, another attempt reads the first one's addresses
    # (https://github.com/pytorch/pytorch/issues/135712). Machines may differ in how often they have restarted.
    store = PrefixStore(main.nonce, launcher_store)
    launcher_store.set("main", json.dumps(asdict(main)))
    places = {0: main}
    wrong: list[Place] = []

    def is_complete() -> bool:
        for rank in range(main.size):
            if rank not in places and store.check([f"place_{rank}"]):
                places[rank] = Place(**json.loads(store.get(f"place_{rank}")))
                wrong.extend([places[rank]] if places[rank].size != main.size else [])
        return len(places) == main.size or bool(wrong)

    def missing() -> str:
        return f"{ranks_text([rank for rank in range(main.size) if rank not in places])} of {main.size}"

    is_there = _poll(is_complete, deadline, lambda: f"rank 0: waiting for {missing()}")
    problem = _disagreement(main, wrong[0]) if wrong else ""
    if not problem and is_there is not True:
        problem = (
            f"{missing()} did not come to {main.host}, port {os.environ['MASTER_PORT']}, within {wait_s:.0f} s: their "
            "own messages say why. Start them with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE; "
            "OUMI_START_TIMEOUT_S sets the time"
        )
    in_order = [places[rank] for rank in sorted(places)]
    store.set("decision", json.dumps({"problem": problem, "places": [asdict(place) for place in in_order]}))
    if problem:
        # This process may hold the store: it stays until the others know, but not for those that never came.
        limit_s = time.monotonic() + min(_ANSWER_S, wait_s)
        _poll(lambda: store.add("readers", 0) >= len(places) - 1, limit_s)
    return Meeting(store, in_order), problem


def _join(place: Place, launcher_store: Store, deadline: float) -> tuple[Meeting, str]:
    """Returns the meeting that rank 0 has opened, and what keeps the run from starting."""
    main: Place | None = None
    joined = ""
    is_twice = False

    def decision() -> bool:
        nonlocal main, joined, is_twice
        if not launcher_store.check(["main"]):
            return False
        main = Place(**json.loads(launcher_store.get("main")))
        store = PrefixStore(main.nonce, launcher_store)
        is_decided = bool(store.check(["decision"]))
        if joined != main.nonce and not is_decided:  # a decision that came before is of the last attempt
            joined = main.nonce
            is_twice = store.add(f"came_{place.rank}", 1) > 1
            store.set(f"place_{place.rank}", json.dumps(asdict(place)))
        return is_twice or (joined == main.nonce and (is_decided or main.size != place.size))

    def note() -> str:
        return "" if joined else f"rank {place.rank}: waiting for rank 0"

    is_there = _poll(decision, deadline + _ANSWER_S, note, place.rank == 1)
    if main is None or is_there is not True:
        return Meeting(launcher_store, []), f"rank 0 of {place.size} did not come: its own message says why"
    if main.size != place.size:
        return Meeting(launcher_store, []), _disagreement(main, place)
    if is_twice:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        problem = (
            f"rank {place.rank} is there twice at {address}: two runs use this port, or two processes are this rank"
        )
        return Meeting(launcher_store, []), problem
    store = PrefixStore(main.nonce, launcher_store)
    answer = json.loads(store.get("decision"))
    store.add("readers", 1)
    places = [Place(**other) for other in answer["places"]]
    return Meeting(store, places), answer["problem"]


def _disagreement(main: Place, other: Place) -> str:
    return (
        f"{other} has WORLD_SIZE={other.size}, {main} has WORLD_SIZE={main.size}: expected the same number for all "
        "ranks, nodes times processes of each node"
    )


def ranks_text(ranks: list[int], max_listed: int = 8) -> str:
    """Returns `rank 3`, or `ranks 1, 2, 5`, shortened where there are many."""
    more = f" and {len(ranks) - max_listed} more" if len(ranks) > max_listed else ""
    return f"rank{'s' if len(ranks) != 1 else ''} {', '.join(map(str, ranks[:max_listed]))}{more}"


def _poll(
    ask: Callable[[], Answer], deadline: float, note: str | Callable[[], str] = "", is_noted: bool = True
) -> Answer:
    """Returns the first answer that is True, or the last one before a deadline; prints now and then what is missing."""
    began = noted = time.monotonic()
    while (answer := ask()) is not True:
        now = time.monotonic()
        if now >= deadline:
            break
        text = note if isinstance(note, str) else note()
        if text and is_noted and now - noted >= _NOTE_S:
            noted = now
            print(f"{text} ({now - began:.0f} s)", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)
    return answer


def _machine() -> str:
    """Returns what the processes have in common that can signal each other: the machine, and its namespace of ids."""
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts += [boot.read_text(encoding="utf-8").strip(), str(namespace.readlink())]
    return " ".join(parts)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
