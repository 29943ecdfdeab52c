# SPDX-License-Identifier: Apache-2.0
"""What SIGTERM, SIGINT and SIGHUP do to a run, and SIGUSR1 and SIGUSR2 under a launcher: the only place that does.

Before the first step they end the run at once. During the steps they request a stop, which the run carries out after
the step, or within an evaluation; a second one ends the process. While files are written, none interrupts.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from threading import Thread
from types import FrameType
from typing import Any

from oumi.core.errors import PreemptedError
from oumi.core.log import current_rank

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Schedulers send them some time before they end a job, as `sbatch --signal=USR1@90` says."""
_SCHEDULERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "SKYPILOT_NODE_RANK")
"""Variables of those that start processes and signal them."""
_ONE_REQUEST_S = 0.25
"""Signals within this time of the first one belong to it: a shell and a launcher both pass on a Ctrl-C."""


class _Answer(Enum):
    """How the process answers a signal."""

    INTERRUPT = auto()
    """Nothing is trained yet: the run ends at once."""
    REQUEST = auto()
    """The first signal requests a stop, a later one ends the process."""
    HOLD = auto()
    """Files are being written: a signal only requests a stop."""


class _Signals:
    """The signals of this process; a process has one handler for each of them."""

    def __init__(self) -> None:
        self.is_stop_requested = False
        self.answer = _Answer.INTERRUPT
        self._name = ""
        self._first_s = 0.0
        self._pid = 0
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        self.is_stop_requested, self.answer, self._pid = False, _Answer.INTERRUPT, os.getpid()
        is_scheduled = any(name in os.environ for name in _SCHEDULERS)
        for number in (*_NUMBERS, *_WARNINGS) if is_scheduled else _NUMBERS:
            # An ignored signal stays so, as `nohup` wants it. A handler that is not Python's cannot be restored.
            if signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            with suppress(ValueError):  # only the main thread may set handlers, which some notebooks do not use
                self._previous[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def stopped_at_start(self) -> PreemptedError:
        return PreemptedError(f"stopped by {self._name} before the first step; run the same command again")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A terminal signals its whole process group. While the run goes on, so must a forked worker that it needs;
            # but SIGTERM ends it, as by its parent.
            if number == signal.SIGTERM or self.answer is _Answer.INTERRUPT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        is_first, now_s = not self.is_stop_requested, time.monotonic()
        if is_first:
            self.is_stop_requested, self._name, self._first_s = True, signal.Signals(number).name, now_s
        if self.answer is _Answer.INTERRUPT:
            raise KeyboardInterrupt
        if is_first and current_rank() == 0:
            # Not by the logger, whose stream this signal may have interrupted within a write.
            with suppress(OSError):
                os.write(2, f"\n{self._name}: stopping after this step, with a checkpoint\n".encode())
        if not is_first and self.answer is _Answer.REQUEST and now_s - self._first_s > _ONE_REQUEST_S:
            self.restore()
            os.kill(os.getpid(), number)


_signals = _Signals()


def is_stop_requested() -> bool:
    """Returns True if this process has received a signal to stop since the run started."""
    return _signals.is_stop_requested


def only_parent_ends() -> None:
    """Lets no signal to stop end this worker process, except a SIGTERM of its parent."""
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP, *_WARNINGS):
        signal.signal(number, signal.SIG_IGN)

    def wait_for_parent() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=wait_for_parent, daemon=True).start()


@contextmanager
def signals_answered() -> Iterator[None]:
    """Answers signals within a run, and restores the previous handlers after it.

    Raises:
        PreemptedError: A signal came before `request_stops`.
    """
    _signals.install()
    try:
        yield
    except KeyboardInterrupt:
        if _signals.answer is not _Answer.INTERRUPT or not _signals.is_stop_requested:
            raise
        raise _signals.stopped_at_start() from None
    finally:
        _signals.restore()


def request_stops() -> None:
    """From here on a signal requests a stop instead of ending the run at once; called before the first step."""
    _signals.answer = _Answer.REQUEST


def hold_signals() -> None:
    """From here on no signal interrupts; called after the last step, when only files are left to write."""
    _signals.answer = _Answer.HOLD


@contextmanager
def signals_held() -> Iterator[None]:
    """Lets no signal interrupt a block that writes a checkpoint."""
    before, _signals.answer = _signals.answer, _Answer.HOLD
    try:
        yield
    finally:
        _signals.answer = before
