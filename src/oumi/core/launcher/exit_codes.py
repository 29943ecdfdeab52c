# SPDX-License-Identifier: Apache-2.0
"""What the exit code of a job's script means."""

from __future__ import annotations

import signal

from oumi.core.errors import PreemptedError

PREEMPTED = PreemptedError.exit_code
_MEANINGS = {
    PREEMPTED: "stopped; with `training.try_resume_from_last_checkpoint` the same job resumes",
    126: "a command cannot be executed",
    127: "a command was not found",
    128 + signal.SIGKILL: "a command was killed by SIGKILL; the system does this when memory runs out",
}


def explain_exit(code: int) -> str:
    """Returns what an exit code says, `-n` for a script that signal n ended; empty for 0."""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {_signal_name(-code)}"
    meaning = _MEANINGS.get(code)
    if meaning is None and code > 128 and _signal_name(code - 128):
        meaning = f"a command was ended by {_signal_name(code - 128)}"
    return f"exit code {code}" + (f": {meaning}" if meaning else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}" if number < 65 else ""
