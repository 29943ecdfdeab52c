# SPDX-License-Identifier: Apache-2.0
"""The states of local jobs, from what their supervisors have written and from what still runs."""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any

from oumi.core.launcher.cloud import FINAL_STATES, JobState, JobStatus
from oumi.core.launcher.exit_codes import PREEMPTED, explain_exit
from oumi.core.launcher.supervisor import GRACE_S, JobDirectory, boot_id, orphans, read_slots

_WORDS = {
    JobState.PENDING: "QUEUED",
    JobState.RUNNING: "RUNNING",
    JobState.SUCCEEDED: "COMPLETED",
    JobState.FAILED: "FAILED",
    JobState.CANCELLED: "CANCELED",
}
"""The words of Oumi for the states of local jobs."""


def job_status(job: JobDirectory) -> JobStatus:
    """Returns the status of a job, also of one whose supervisor could not write it."""
    is_supervised = job.is_supervised()
    outcome = job.outcome()  # in this order, since a supervisor writes the outcome before it ends
    try:
        request = job.request()
    except (ValueError, FileNotFoundError) as error:  # such as after a loss of power
        note = f"its files in {job.path} are damaged: {error}"
        return JobStatus("", job.id, "UNKNOWN", job.path.parent.name, note, done=True)
    state, word, metadata = _state(job, request, outcome, is_supervised)
    return JobStatus(
        name=request["name"] or "",
        id=job.id,
        status=word,
        cluster=job.path.parent.name,
        metadata=metadata,
        done=state in FINAL_STATES,
        state=state,
        exit_code=_exit_code(outcome.get("code")),
        submit_time=_time(request["submitted"]),
        start_at=_time(outcome.get("started")),
        end_at=_time(outcome.get("ended")),
    )


def _state(
    job: JobDirectory, request: dict[str, Any], outcome: dict[str, Any], is_supervised: bool
) -> tuple[JobState, str, str]:
    """Returns the state of a job, its word, and what else there is to say."""
    state = JobState(outcome.get("state", JobState.PENDING))
    word, metadata = _WORDS[state], outcome.get("note", "")
    if state in FINAL_STATES:
        code = outcome.get("code")
        if state is JobState.FAILED and code is not None:
            metadata = "; ".join(filter(None, [explain_exit(code), metadata]))
            word = "PREEMPTED" if code == PREEMPTED else word
    elif is_supervised:
        if job.num_cancels():
            word, metadata = "CANCELING", f"is being cancelled, and has {GRACE_S:.0f} s for it"
        elif state is JobState.PENDING:
            metadata = f"waits for one of {read_slots(job.path.parent)} slots"
    elif left := orphans(job.path):
        pids = ", ".join(str(process.pid) for process in left)
        return JobState.RUNNING, "RUNNING", f"its supervisor was killed; processes {pids} go on, until it is cancelled"
    else:
        state, metadata = _state_without_processes(job, request)
        word = _WORDS.get(state, "UNKNOWN")
    return state, word, metadata


def _state_without_processes(job: JobDirectory, request: dict[str, Any]) -> tuple[JobState, str]:
    """Returns the state of a job whose supervisor could not write it, and why."""
    if job.num_cancels():
        return JobState.CANCELLED, "its supervisor was killed"
    if request["boot"] == boot_id():
        return JobState.FAILED, "its supervisor was killed"
    if request["host"] != socket.gethostname():  # two machines share a home directory
        return JobState.UNKNOWN, f"was started on {request['host']}, which knows its state"
    return JobState.FAILED, "the machine was restarted"


def _exit_code(code: int | None) -> int | None:
    """Returns an exit code as shells have it, 128 and the number of a signal."""
    return code if code is None or code >= 0 else 128 - code


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone()
