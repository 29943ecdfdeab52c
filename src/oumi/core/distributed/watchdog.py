# SPDX-License-Identifier: Apache-2.0
"""Watches the ranks of a run, so that none waits for another one that failed, ended, stopped or is out of reach.

A thread in each rank keeps a connection to rank 0. The first failure of any rank goes to all of them. Those that do
not end by themselves, since they wait in a collective operation, print where they wait and exit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakSet

from oumi.core.distributed.rendezvous import Meeting, Place, seconds_of
from oumi.core.errors import ConfigError, PreemptedError
from oumi.core.system.exits import Outcome, exit_code, is_launcher_gone, leave_outcome
from oumi.core.system.signals import is_stop_requested

_BEAT_S = 1.0
_SILENCE_S = 12.0
"""After this time a stopped process, or a machine that does not acknowledge, counts as failed."""
_BUSY_FACTOR = 5
"""A process that runs may be silent so many times longer: its thread has to wait while an import or a copy holds the
interpreter."""
_GRACE_S = 2.0
"""Time for a rank to end by itself after another one has failed."""
_OWN_GRACE_S = 10.0
"""The same for the rank that failed, which may have files to close."""
_MAX_LINE = 1 << 20
_MAX_REASON = 2000
"""Characters of a message that other ranks show."""


@dataclass(frozen=True)
class Failure:
    """Why a rank cannot go on."""

    rank: int
    host: str
    reason: str
    """As the end of a sentence that begins with the rank."""
    exit_code: int = 1
    is_silent: bool = False
    """The rank does not run: nobody knows whether it will."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {self.reason}"


class _Link:
    """A connection to another rank that carries JSON lines."""

    def __init__(self, connection: socket.socket, silence_s: float) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT") and silence_s:  # Linux tells when the other machine acknowledges nothing
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence_s))
        self.connection = connection
        self.rank: int | None = None
        self.heard_s = time.monotonic()
        self.is_done = False
        """The other rank has said goodbye: it may end."""
        self._buffer = b""
        self._lock = threading.Lock()
        _links.add(self)

    def send(self, message: dict[str, Any]) -> None:
        # A process that does not read lets the buffer fill; it is noticed by its silence.
        with self._lock, contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> list[dict[str, Any]] | OSError | None:
        """Returns the messages that came; None at the end of the connection, or the error that ended it."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            return error
        if not data:
            return None
        self.heard_s = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        # A stranger, such as a scanner of ports, may send anything.
        is_ours = len(self._buffer) < _MAX_LINE and all(isinstance(message, dict) for message in messages)
        return messages if is_ours else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        self.connection.close()


_links: WeakSet[_Link] = WeakSet()


def _forget_links() -> None:
    # A forked worker that outlives its rank would keep the connection open, and hide that the rank is gone.
    for link in _links:
        link.connection.close()


os.register_at_fork(after_in_child=_forget_links)


class Watchdog:
    """The thread of one rank that watches the others."""

    def __init__(self, place: Place, places: list[Place], silence_s: float) -> None:
        """Initializes the watchdog; `start` connects it.

        Args:
            place: This rank.
            places: All ranks in their order.
            silence_s: Seconds after which a rank that does not run counts as failed; 0 for never.
        """
        self.place, self._places, self._silence_s = place, places, silence_s
        self._failure: Failure | None = None
        self._own: Outcome | None = None
        """How this rank ends, once it has failed by itself."""
        self._is_known, self._is_closed = threading.Event(), threading.Event()
        self._links: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._waker, self._wake = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._token = ""
        self._started_s, self._joined = time.monotonic(), {0, place.rank}
        self._stopped_since: float | None = None
        self._thread = threading.Thread(target=self._watch, name="oumi-watchdog", daemon=True)

    @classmethod
    def start(cls, place: Place, meeting: Meeting) -> Watchdog:
        """Returns the running watchdog of this rank; all ranks call it together.

        Raises:
            ConfigError: Rank 0 cannot be reached.
        """
        watchdog = cls(place, meeting.places, seconds_of("OUMI_RANK_TIMEOUT_S", _SILENCE_S))
        address = os.environ["MASTER_ADDR"]
        if place.rank == 0:
            watchdog._token = secrets.token_hex(16)
            watchdog._listener = _listen(address)
            watchdog._selector.register(watchdog._listener, selectors.EVENT_READ)
            meeting.store.set("watchdog", json.dumps([watchdog._listener.getsockname()[1], watchdog._token]))
        else:
            port, token = json.loads(meeting.store.get("watchdog"))
            try:
                connection = socket.create_connection((address, port), timeout=max(watchdog._silence_s, 1.0))
            except OSError as error:
                raise ConfigError(
                    f"rank {place.rank} on {place.host} cannot connect to rank 0 at {address}:{port} ({error}). The "
                    "ranks of a run need open ports between their machines"
                ) from error
            link = watchdog._add_link(connection)
            link.rank = 0
            link.send({"rank": place.rank, "token": token})
        watchdog._thread.start()
        return watchdog

    def wait_for_failure(self, wait_s: float) -> Failure | None:
        """Returns the first failure of any rank, None if none becomes known in so many seconds."""
        self._is_known.wait(wait_s)
        return self._failure

    def fail(self, error: BaseException) -> None:
        """Tells all ranks that an error ends this one."""
        code = exit_code(error)
        self._own = outcome = Outcome.of(error)
        reason = f"failed: {outcome.message}"
        if isinstance(error, KeyboardInterrupt):
            reason = "was stopped by a signal" if is_stop_requested() else "was interrupted"
        elif isinstance(error, SystemExit):
            reason = f"exited with code {code}"
        self._tell(Failure(self.place.rank, self.place.host, reason[:_MAX_REASON], code or 1))

    def close(self) -> None:
        """Ends the watch of this rank, which needs the others no more."""
        self._is_closed.set()
        self._waker.send(b"x")
        self._thread.join(timeout=2 * _BEAT_S)
        for link in self._links:
            link.send({"done": True})
            link.close()
        for file in (self._listener, self._waker, self._wake, self._selector):
            if file is not None:
                file.close()

    def _watch(self) -> None:
        beat_s = 0.0
        while not self._is_closed.is_set():
            # Everything that came is read before anybody is called silent: this thread may have been kept waiting.
            for key, _ in self._selector.select(max(0.0, beat_s + _BEAT_S - time.monotonic())):
                self._receive(key.fileobj)
            if self._is_known.is_set():
                self._end_after_failure()
                return
            if time.monotonic() >= beat_s + _BEAT_S:
                beat_s = time.monotonic()
                for link in self._links:
                    link.send({})
                self._look_around()

    def _receive(self, file: Any) -> None:
        if file is self._wake:
            return
        if file is self._listener and self._listener is not None:
            with contextlib.suppress(OSError):
                self._add_link(self._listener.accept()[0])
            return
        link = next(link for link in self._links if link.connection is file)
        messages = link.read()
        if messages is None or isinstance(messages, OSError):
            self._drop(link, messages)
            return
        for message in messages:
            if message.get("token") == self._token and link.rank is None:
                link.rank = int(message["rank"])
                self._joined.add(link.rank)
            if link.rank is None:  # not one of ours
                self._drop(link, None)
                return
            if "failure" in message:
                self._tell(Failure(**message["failure"]), link)
            link.is_done |= "done" in message

    def _look_around(self) -> None:
        """Looks for a rank that does not run: by its silence, and the next one on this machine by its state."""
        if is_launcher_gone():
            self._leave(Outcome(self.place.rank, 1, "stopped, since its launcher has ended", time_s=time.time()))
        if not self._silence_s:
            return
        now_s = time.monotonic()
        limit_s = _BUSY_FACTOR * self._silence_s
        for link in self._links:
            if link.rank is not None and now_s - link.heard_s > limit_s and not link.is_done:
                self._tell(self._failure_of(link.rank, f"has shown no sign of life for {limit_s:.0f} s"))
        if self.place.rank == 0 and len(self._joined) < self.place.size and now_s - self._started_s > limit_s:
            rank = min(set(range(self.place.size)) - self._joined)
            self._tell(self._failure_of(rank, f"has not connected within {limit_s:.0f} s"))
        neighbour = self._neighbour()
        if neighbour is None or not _is_stopped(neighbour.pid):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now_s
        elif now_s - self._stopped_since > self._silence_s:
            reason = f"has been stopped (SIGSTOP or a debugger) for {self._silence_s:.0f} s"
            self._tell(self._failure_of(neighbour.rank, reason))
            with contextlib.suppress(OSError):
                os.kill(neighbour.pid, signal.SIGCONT)  # so that it shows where it was, and leaves

    def _neighbour(self) -> Place | None:
        """Returns the next rank on this machine, in a ring."""
        here = [place for place in self._places if place.machine == self.place.machine]
        neighbour = here[(here.index(self.place) + 1) % len(here)]
        return neighbour if neighbour != self.place else None

    def _failure_of(self, rank: int, reason: str) -> Failure:
        return Failure(rank, self._places[rank].host, reason, is_silent=True)

    def _drop(self, link: _Link, error: OSError | None) -> None:
        """Ends a connection, whose rank failed unless it has said goodbye."""
        self._selector.unregister(link.connection)
        self._links.remove(link)
        link.close()
        if link.rank is None or link.is_done:
            return
        if error is None or isinstance(error, ConnectionResetError | BrokenPipeError):
            reason = "ended without a message: it was killed, or crashed"
        else:
            reason = f"cannot be reached any more: {error.strerror or error}"
        self._tell(Failure(link.rank, self._places[link.rank].host, reason))

    def _tell(self, failure: Failure, source: _Link | None = None) -> None:
        """Notes the first failure, and passes it on: to rank 0, and from there to all."""
        if self._failure is not None:
            return
        self._failure = failure
        self._is_known.set()
        for link in list(self._links):
            if link is not source:
                link.send({"failure": asdict(failure)})
        if threading.current_thread() is not self._thread:
            self._waker.send(b"x")

    def _end_after_failure(self) -> None:
        """Gives the main thread some time to end the run; ends the process if it does not."""
        failure = self._failure
        assert failure is not None
        if failure.is_silent:
            self._print_stacks()
        if failure.is_silent and failure.rank == self.place.rank:  # it ran on only to show where it was
            self._leave(Outcome(failure.rank, failure.exit_code, f"it {failure.reason}", time_s=time.time()))
        if self._is_closed.wait(_OWN_GRACE_S if self._own is not None else _GRACE_S):
            return
        if not failure.is_silent:
            self._print_stacks()
        message = f"stopped, since {failure}"
        following = Outcome(self.place.rank, failure.exit_code, message, cause=failure.rank, time_s=time.time())
        self._leave(self._own or following)

    def _print_stacks(self) -> None:
        """Shows where all threads are, if this rank waits for others or does not run; else it is only busy."""
        failure, collective = self._failure, _collective()
        is_own = failure is not None and failure.rank == self.place.rank
        if collective or is_own:
            place = f", in {collective}" if collective else ""
            os.write(2, f"rank {self.place.rank}: all threads, as they are{place}:\n".encode())
            faulthandler.dump_traceback(2)

    def _leave(self, outcome: Outcome) -> None:
        """Ends this process at once."""
        if not leave_outcome(outcome) or outcome.cause is not None:  # a launcher prints only what failed first
            # Not through Python's streams and locks, which the main thread may hold.
            with contextlib.suppress(OSError):
                os.write(2, f"{outcome.trace}rank {self.place.rank}: {outcome.message}\n".encode())
        os._exit(outcome.exit_code or 1)

    def _add_link(self, connection: socket.socket) -> _Link:
        link = _Link(connection, self._silence_s)
        self._links.append(link)
        self._selector.register(connection, selectors.EVENT_READ)
        return link


def is_agreed_end(error: BaseException) -> bool:
    """Returns True if an error ends all ranks alike, so that none has to tell the others."""
    return isinstance(error, PreemptedError | GeneratorExit) or (isinstance(error, SystemExit) and not exit_code(error))


def _listen(address: str) -> socket.socket:
    """Returns a listening socket on a free port: where the other ranks look for rank 0."""
    if address in ("localhost", "127.0.0.1"):
        return socket.create_server((address, 0), backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _is_stopped(pid: int) -> bool:
    """Returns True if a process of this machine does not run since a signal or a debugger stopped it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:  # it has ended, or the system has no such files
        return False
    return status.rpartition(") ")[2][:1] in ("T", "t")


def _collective() -> str:
    """Returns the collective operation in which the main thread waits and the line that calls it, or an empty text."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    name = ""
    while frame is not None:
        code = frame.f_code
        if "torch/distributed/" in Path(code.co_filename).as_posix():
            name = name or code.co_name
        elif name:
            return f"{name}, called by {code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"
        frame = frame.f_back
    return name
