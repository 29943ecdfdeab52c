# SPDX-License-Identifier: Apache-2.0
"""How a process ends: its message and exit code, and what it leaves for the launcher that started it.

A launcher of ours sets OUMI_LAUNCHER_PID and OUMI_LAUNCH_DIR. Its processes write there why they failed instead of
printing it, so that the launcher shows the first failure once and last.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from oumi.core.errors import OtherRankError, OumiError
from oumi.core.log import current_rank
from oumi.core.system.signals import is_stop_requested

LAUNCHER_PID, LAUNCH_DIR, RESTARTS = "OUMI_LAUNCHER_PID", "OUMI_LAUNCH_DIR", "OUMI_LAUNCH_RESTARTS"
JOB_RESTARTS = "OUMI_JOB_RESTARTS"
"""Set by the script of a batch job where the scheduler sets no such variable."""
_PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""
INTERRUPTED = 130
"""Exit code after a Ctrl-C that nothing answered, as shells have it."""


@dataclass(frozen=True)
class Outcome:
    """How a rank of a launcher ended."""

    rank: int
    exit_code: int
    message: str = ""
    trace: str = ""
    """The traceback of an error that is no mistake of the user."""
    cause: int | None = None
    """The rank whose failure ended this one, None if it failed by itself."""
    time_s: float = 0.0
    """Seconds since 1970."""

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """Returns the outcome of this rank where an error ended it."""
        message = str(error) or type(error).__name__
        trace = ""
        if not isinstance(error, OumiError):
            message = traceback.format_exception_only(error)[-1].strip()
            trace = "".join(traceback.format_exception(error))
        cause = error.rank if isinstance(error, OtherRankError) and error.rank != current_rank() else None
        return cls(current_rank(), exit_code(error), message, trace, cause, time.time())


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a process that an error ends."""
    if isinstance(error, OumiError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 75 if is_stop_requested() else INTERRUPTED
    return 1


@contextmanager
def exits_explained() -> Iterator[None]:
    """Runs a command to its end: a problem that the user can fix is printed without a traceback.

    Raises:
        SystemExit: The command failed.
    """
    end_with_launcher()
    try:
        yield
    except OumiError as error:
        follows = isinstance(error, OtherRankError) and error.rank is not None
        if not leave_outcome(error) or follows:  # the launcher prints only what failed first
            print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        leave_outcome(error)
        sys.exit(exit_code(error))
    except Exception as error:
        if not leave_outcome(error):
            raise
        sys.exit(1)  # the launcher prints the traceback


def leave_outcome(error: BaseException | Outcome) -> bool:
    """Writes for the launcher how this rank ended; returns False if none of ours started this process itself."""
    folder = os.environ.get(LAUNCH_DIR)
    if not folder or os.environ.get(LAUNCHER_PID) != str(os.getppid()):
        return False
    outcome = error if isinstance(error, Outcome) else Outcome.of(error)
    path = Path(folder) / f"{restart_count()}-{outcome.rank}.json"
    try:
        # Renamed into place, so that the launcher never reads half of it.
        path.with_suffix(".part").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    except OSError:  # such as a full disk: then this process prints its message itself
        return False
    return True


def read_outcomes(folder: Path) -> dict[int, Outcome]:
    """Returns the outcomes of the last attempt in a launcher's folder, by rank."""
    attempts: dict[int, dict[int, Outcome]] = {}
    for path in folder.glob("*-*.json"):
        attempt, _, rank = path.stem.partition("-")
        attempts.setdefault(int(attempt), {})[int(rank)] = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    return attempts[max(attempts)] if attempts else {}


def restart_count() -> int:
    """Returns how often an elastic launcher has started the ranks of this run again after a failure."""
    # torch does not count a restart of this machine that follows one of another machine; a launcher of ours does.
    counts = (os.environ.get(name, "") for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
    return max((int(count) for count in counts if count.isdecimal()), default=0)


def requeue_count() -> int:
    """Returns how often a scheduler has put the job of this process back into its queue and started it again."""
    counts = (os.environ.get(name, "") for name in ("SLURM_RESTART_COUNT", JOB_RESTARTS))
    return max((int(count) for count in counts if count.isdecimal()), default=0)


def end_with_launcher() -> None:
    """Ends this process, if a launcher started it, as soon as that launcher is gone: a killed one leaves no orphans."""
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if is_launcher_gone():  # before the line above
        os._exit(1)


def is_launcher_gone() -> bool:
    """Returns True if a launcher of ours started this process and has ended since."""
    launcher = os.environ.get(LAUNCHER_PID, "")
    if not launcher.isdecimal():
        return False
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
