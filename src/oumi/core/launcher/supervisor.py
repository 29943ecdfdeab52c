# SPDX-License-Identifier: Apache-2.0
"""The process that runs one job of this machine, and the files it leaves.

Python runs this file by its path, without the packages of Oumi: it starts in 40 ms and stays below 15 MB, since every
job that waits has one. It holds what must be in no file, the environment of the job.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

MARKER = "OUMI_LOCAL_JOB"
"""Variable of all processes of a job: its directory. It finds them after their supervisor was killed."""
GRACE_S = 300.0
"""Time for a checkpoint after SIGTERM, before what still runs is killed."""
_LEFTOVER_GRACE_S = 10.0
"""The same for what a script leaves in the background when it ends."""
_PREEMPTED = 75
"""Exit code of a training that a signal stopped; it has a checkpoint."""
_KILL_S = 10.0
"""Time for SIGKILL, which does not end what runs as another user or waits for a device."""
_POLL_S = 0.1
_MAX_POLL_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36
"""From <sys/prctl.h>: processes whose parent ends become children of this one, so that none is lost."""
_PROC = Path("/proc")


@dataclass(frozen=True)
class JobDirectory:
    """The files of a job: what was asked for, its script, its output, and what became of it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def script(self) -> Path:
        return self.path / "script.sh"

    @property
    def lock(self) -> Path:
        """Locked as long as the supervisor lives, by whom else it may be killed."""
        return self.path / "lock"

    def request(self) -> dict[str, Any]:
        """Returns what was asked for, as `local.py` wrote it."""
        return dict(_read_json(self.path / "job.json"))

    def outcome(self) -> dict[str, Any]:
        """Returns what the supervisor has written: `state`, `started`, `ended`, `code`, `note`; empty if nothing."""
        with suppress(FileNotFoundError, ValueError):  # a loss of power may leave an empty file
            return dict(_read_json(self.path / "state.json"))
        return {}

    def write(self, **outcome: Any) -> None:
        """Replaces what the supervisor has written."""
        part = self.path / "state.part"
        part.write_text(json.dumps(outcome), encoding="utf-8")
        part.replace(self.path / "state.json")  # at once, so that nobody reads half of it

    def request_cancel(self) -> None:
        """Requests the end of the job; a second request ends it without a time for checkpoints."""
        with (self.path / "cancel").open("ab") as file:
            file.write(b"1")

    def num_cancels(self) -> int:
        """Returns how often the end of the job was requested."""
        try:
            return (self.path / "cancel").stat().st_size
        except FileNotFoundError:
            return 0

    def is_supervised(self) -> bool:
        """Returns True if the supervisor of the job lives."""
        try:
            with self.lock.open("rb") as file:
                # Shared, so that two who look at once do not take each other for a supervisor.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return True
        return False

    def is_active(self) -> bool:
        """Returns True if the job waits or has processes, with a supervisor or without."""
        if self.is_supervised():
            return self.outcome().get("state") in (None, "running")
        # Asked for in this order, since a supervisor writes how its job ended before it ends.
        return self.outcome().get("state") in (None, "running") and bool(orphans(self.path))


class Process(NamedTuple):
    """A row of the table of processes."""

    pid: int
    parent: int
    group: int


def list_jobs(cluster: Path) -> list[JobDirectory]:
    """Returns the jobs of a cluster, oldest first."""
    try:
        names = [name for name in os.listdir(cluster) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [JobDirectory(cluster / name) for name in sorted(names, key=int)]


def read_slots(cluster: Path) -> int:
    """Returns how many jobs of a cluster run at once."""
    try:
        return max(int((cluster / "slots").read_text()), 1)
    except (OSError, ValueError):
        return 1


def orphans(job: Path) -> list[Process]:
    """Returns the processes that a job still has after its supervisor was killed, by the variable that marks them."""
    marker = os.fsencode(job)
    return [process for process in process_table() if process.pid != os.getpid() and _marker(process.pid) == marker]


def _marker(pid: int) -> bytes:
    """Returns the directory of the job of a process; empty if it has none, or belongs to another user."""
    prefix = f"{MARKER}=".encode()
    with suppress(OSError):
        for variable in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if variable.startswith(prefix):
                return variable.removeprefix(prefix)
    return b""


def process_table() -> list[Process]:
    """Returns the processes of this machine that have not ended; none where there is no /proc."""
    table = []
    for name in os.listdir(_PROC) if _PROC.is_dir() else []:
        if name.isdecimal():
            with suppress(OSError):  # it has ended since
                # The name in parentheses may contain anything, so the fields are counted from its end.
                fields = (_PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] not in b"ZX":
                    table.append(Process(int(name), int(fields[1]), int(fields[2])))
    return table


def boot_id() -> str:
    """Returns what names this start of the machine, empty where the system does not tell."""
    with suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def end_processes(
    find: Callable[[], list[Process]], group: int, grace_s: float, is_urgent: Callable[[], bool]
) -> list[Process]:
    """Ends processes: SIGTERM first, SIGKILL after a time or as soon as it is urgent. Returns those that do not end.

    Args:
        find: Returns those that are left.
        group: Process group of the script, which is signalled first. A launcher in it passes the signal on to
            processes in groups of their own: a second signal would end these before they have saved a checkpoint.
        grace_s: Seconds from the first SIGTERM to SIGKILL.
        is_urgent: Returns True to kill at once.
    """
    signalled = {process.pid for process in find() if process.group == group}
    if signalled:
        # All of them at once: a script whose command ends first would go on before it is signalled itself.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    # Twice, for what was started while the table of processes was read.
    while processes := find() or find():
        if is_urgent():
            deadline = min(deadline, time.monotonic())
        if time.monotonic() > deadline + _KILL_S:
            break
        if time.monotonic() >= deadline:
            _signal({process.pid for process in processes}, signal.SIGKILL)
        elif not any(process.group == group for process in processes):
            others = {process.pid for process in processes} - signalled
            _signal(others, signal.SIGTERM)
            signalled |= others
        time.sleep(_POLL_S)
    return processes


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class _Supervisor:
    """Waits for the turn of a job, runs it, and ends all of its processes."""

    def __init__(self, job: JobDirectory) -> None:
        self._job = job
        self._is_stopped = False
        self._code: int | None = None
        """How the script ended, as `os.waitstatus_to_exitcode` has it; None while it runs."""
        self._pid = 0
        self._has_saved = False
        """A process that outlived the script has saved a checkpoint."""

    def run(self) -> None:
        if _PROC.is_dir():
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            # Handlers, since the job would inherit that a signal is ignored.
            signal.signal(number, self._receive)
        if not self._wait_for_turn():
            self._record(ended=time.time(), **self._stopped_before_start())
            return
        started = time.time()
        self._record(state="running", started=started)
        try:
            # Kept, since the object of a process takes its exit code with it when it is freed.
            process = subprocess.Popen(
                ["bash", str(self._job.script)], stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._pid = process.pid
        except OSError as error:
            self._record(state="failed", started=started, ended=time.time(), note=f"bash: {error.strerror}")
            return
        ending = self._wait_for_end()
        self._record(started=started, ended=time.time(), **ending)

    def _record(self, **outcome: Any) -> None:
        """Writes what becomes of the job, on a full disk as soon as there is space."""
        while True:
            try:
                return self._job.write(**outcome)
            except FileNotFoundError:
                return None  # someone has removed the directory, and asks no more
            except OSError:
                time.sleep(1)

    def _receive(self, number: int, frame: Any) -> None:
        # The terminal of a shell that is gone, or a Ctrl-C in it, is no reason to end; a shutdown is.
        if number == signal.SIGTERM:
            self._is_stopped = True

    def _wait_for_turn(self) -> bool:
        """Returns True once fewer jobs than the cluster has slots are before this one; False if it is to end."""
        cluster = self._job.path.parent
        earlier = [job for job in list_jobs(cluster) if int(job.id) < int(self._job.id)]
        while not self._is_ended():
            began = time.monotonic()
            active = []
            slots = read_slots(cluster)
            # The first ones are those that run, so a queue of hundreds is not asked as a whole.
            for job in earlier:
                if len(active) >= slots:
                    break
                if job.is_active():
                    active.append(job)
            if len(active) < slots:
                return True
            # What has ended stays so.
            earlier = [job for job in earlier if job in active or int(job.id) > int(active[-1].id)]
            # The next job of the queue looks often, a hundredth one each second; neither needs a twentieth of a core.
            often_s = min(max(_POLL_S, _POLL_S * (len(earlier) / slots - 1)), _MAX_POLL_S)
            time.sleep(max(often_s, 20 * (time.monotonic() - began)))
        return False

    def _is_ended(self) -> bool:
        return self._is_stopped or self._job.num_cancels() > 0

    def _stopped_before_start(self) -> dict[str, str]:
        if self._job.num_cancels():
            return {"state": "cancelled", "note": "before it started"}
        return {"state": "failed", "note": "its supervisor was ended by SIGTERM before the job started"}

    def _wait_for_end(self) -> dict[str, Any]:
        """Waits for the script, ends what is left of it, and returns how it ended."""
        while self._code is None and not self._is_ended():
            self._reap()
            time.sleep(_POLL_S)
        was_ended = self._code is None
        num_cancels = min(self._job.num_cancels(), 1)
        grace_s = GRACE_S if was_ended else _LEFTOVER_GRACE_S
        left = end_processes(self._descendants, self._pid, grace_s, lambda: self._job.num_cancels() > num_cancels)
        while self._code is None and not left:
            self._reap()
            time.sleep(_POLL_S)
        notes = [f"processes {', '.join(str(process.pid) for process in left)} cannot be killed"] if left else []
        if was_ended and self._has_saved:
            notes.append("saved a checkpoint; with `training.try_resume_from_last_checkpoint` the same job resumes")
        if was_ended and self._job.num_cancels():
            return {"state": "cancelled", "code": self._code, "note": "; ".join(notes)}
        if was_ended:
            notes.append("its supervisor was ended by SIGTERM, and ended it")
        return {"state": "succeeded" if self._code == 0 else "failed", "code": self._code, "note": "; ".join(notes)}

    def _descendants(self) -> list[Process]:
        """Returns the processes of the job, without those of jobs that it has launched itself."""
        self._reap()
        if not _PROC.is_dir():
            return list(self._script_alone())
        children: dict[int, list[Process]] = {}
        for process in process_table():
            children.setdefault(process.parent, []).append(process)
        below = list(children.get(os.getpid(), []))
        own = os.fsencode(self._job.path)
        processes = []
        while below:
            process = below.pop()
            if _marker(process.pid) in (own, b""):
                processes.append(process)
                below += children.get(process.pid, [])
        return processes

    def _script_alone(self) -> Iterator[Process]:
        """Yields the script, which is all that can be seen where there is no /proc."""
        if self._code is None:
            yield Process(self._pid, os.getpid(), self._pid)

    def _reap(self) -> None:
        """Notes how the script ended; what it left behind and has ended since is removed from the system's table."""
        with suppress(ChildProcessError):
            pid = -1
            while pid:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self._pid:
                    self._code = os.waitstatus_to_exitcode(status)
                elif pid and os.waitstatus_to_exitcode(status) == _PREEMPTED:
                    self._has_saved = True


def main() -> None:
    """Runs the job of a directory; its lock is an open file with the number of the second argument."""
    directory, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # the job must not hold it after its supervisor
    _Supervisor(JobDirectory(directory)).run()


if __name__ == "__main__":
    main()
