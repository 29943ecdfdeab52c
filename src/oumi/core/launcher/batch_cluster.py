# SPDX-License-Identifier: Apache-2.0
"""The jobs of an account on a cluster with a scheduler: those that were launched from any machine in 30 days.

Each has a folder there (`Site.folder`) with its scripts, its output, and what the scripts note: its id, when it
started, how it ended. The scheduler's word comes first; what the scripts noted counts once it has forgotten a job.
"""

from __future__ import annotations

import codecs
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from oumi.core.configs import JobConfig
from oumi.core.launcher.cloud import (
    FINAL_STATES,
    BaseCluster,
    ClusterUnreachableError,
    JobState,
    JobStatus,
    LauncherError,
)
from oumi.core.launcher.exit_codes import explain_exit
from oumi.core.launcher.known_clusters import KnownClusters
from oumi.core.launcher.machine import CommandError, Machine
from oumi.core.launcher.sites import Site
from oumi.core.launcher.submission import LINKS, STAMP, prepare
from oumi.core.log import logger

_ACTIVE = (JobState.PENDING, JobState.RUNNING)
_KEPT_DAYS = 30
_POLL_S = 1.0
_ASK_S = 15.0
"""Time between two questions to the scheduler about a job whose output is followed; it serves everybody."""
_CANCEL_S = 60.0
"""How long a job may take to save a checkpoint and end, after it was cancelled; Slurm gives 30 s by default."""
_CHUNK_BYTES = 4_000_000
_FORGOTTEN = "not known to {scheduler} any more"


@dataclass(frozen=True)
class _Note:
    """What the scripts of a job noted in its folder."""

    id: str
    folder: str
    submitted: str
    started: str
    ended: str
    """Exit code and time; empty while it runs, and if it was killed."""
    name: str
    queue: str
    is_cancelled: bool = False


class BatchCluster(BaseCluster):
    """An account on a cluster with a scheduler."""

    def __init__(self, name: str, site: Site, machine: Machine, known: KnownClusters, queue: str = "") -> None:
        """Initializes the cluster.

        Args:
            name: Its name.
            site: Where it is.
            machine: Where jobs are submitted.
            known: The clusters that are known here.
            queue: Where its jobs go, for a site that has several queues, each a cluster of its own.
        """
        self._name, self._site, self.machine, self._known, self.queue = name, site, machine, known, queue

    def name(self) -> str:
        """Returns `here`, `user@host` or `queue.user`."""
        return self._name

    def get_jobs(self) -> list[JobStatus]:
        """Returns the jobs that were launched in the last 30 days, oldest first."""
        notes, states = self._ask()
        return [self._status(note, states) for note in notes]

    def run_job(self, job: JobConfig) -> JobStatus:
        """Uploads what the job needs, submits it and returns its status; raises as `prepare` and `Submission.send`."""
        submission = prepare(job, self._site, self.machine, self.queue)
        for warning in (*self.user_warning(job), *submission.script.warnings):
            logger.warning("%s", warning)
        folder = submission.send()
        if self.machine.host:  # before the job runs: a launch that is killed now must not leave one that nothing shows
            self._known.add(self._name)
        job_id = submission.submit(folder)
        note = _Note(job_id, folder, str(int(time.time())), "", "", submission.script.name, self.queue)
        return self.get_job(job_id) or self._status(note, {job_id: ("PENDING", "")})

    def user_warning(self, job: JobConfig) -> list[str]:
        """Returns a warning if a job names another user than the cluster."""
        user = self.machine.host.partition("@")[0] if "@" in self.machine.host else ""
        if not job.user or job.user == user:
            return []
        return [f"user: '{job.user}' is not used, since the cluster is {self._name}"]

    def cancel_job(self, job_id: str) -> JobStatus:
        """Ends a job and returns its status, which is not final only if the scheduler takes more than 60 s for it."""
        job, note = self._job(job_id)
        if not job.done:
            self._cancel([note])
            job, _ = self._job(job_id)
        return job

    def logs(self, job_id: str, follow: bool = True) -> Iterator[str]:
        """Yields the output of a job, of all of its attempts; if `follow`, until it ends or nobody knows its state."""
        try:
            yield from self._output(job_id, follow)
        except ClusterUnreachableError as error:
            command = f"oumi launch logs --cluster {self._name} --job-id {job_id} -f"
            raise ClusterUnreachableError(
                f"{error}\nJob {job_id} may go on; follow it again with `{command}`"
            ) from error

    def _output(self, job_id: str, follow: bool) -> Iterator[str]:
        _, note = self._job(job_id)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        num_bytes, asked_s, wait_s, is_final = 0, time.monotonic(), 0.0, not follow
        while True:
            has_ended, output = self._read(note.folder, num_bytes)
            num_bytes += len(output)
            if output:
                yield decoder.decode(output)
            elif is_final:
                break
            elif time.monotonic() - asked_s >= (wait_s if has_ended else _ASK_S):
                # Its script may have ended, and the job may be back in the queue all the same.
                asked_s, wait_s = time.monotonic(), min(2 * wait_s + _POLL_S, _ASK_S)
                job, _ = self._job(job_id)
                is_final = job.done or job.state == JobState.UNKNOWN
            if not output and not is_final:
                time.sleep(_POLL_S)
        yield decoder.decode(b"", final=True)

    def stop(self) -> None:
        """Ends all jobs."""
        notes, states = self._ask()
        self._cancel([note for note in notes if self._status(note, states).state in _ACTIVE])

    def down(self) -> None:
        """Ends all jobs and forgets the cluster here; the folders of jobs stay, since results are in them."""
        try:
            self.stop()
        finally:  # else one that is gone for good would be asked for ever
            self._known.remove(self._name)

    def _cancel(self, notes: Sequence[_Note]) -> None:
        """Cancels jobs and waits for their end, in which they may save checkpoints; tells those that do not end."""
        # The note that it was cancelled outlives what the scheduler remembers of a job.
        commands = [
            f"id={shlex.quote(note.id)}\n{{ {self._site.scheduler.cancel}; }} "
            f"&& cd -- {shlex.quote(note.folder)} && : > cancelled && rm -f secrets.sh || code=1"
            for note in notes
        ]
        try:
            self.machine.run("\n".join(["code=0", *commands, "exit $code"]))
        except CommandError:  # a job that ended by itself meanwhile cannot be cancelled, and need not be
            if not all(self._job(note.id)[0].done for note in notes):
                raise
        ids, deadline_s, wait_s = {note.id for note in notes}, time.monotonic() + _CANCEL_S, _POLL_S / 2
        while ids := {job.id for job in self.get_jobs() if job.id in ids and job.state in _ACTIVE}:
            if time.monotonic() > deadline_s:
                logger.warning("%s: cancelled, and not at its end yet: %s", self._name, ", ".join(sorted(ids)))
                return
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 4 * _POLL_S)  # the scheduler serves everybody

    def _job(self, job_id: str) -> tuple[JobStatus, _Note]:
        notes, states = self._ask()
        for note in reversed(notes):  # a scheduler that was set up anew counts from 1 again
            if note.id == job_id:
                return self._status(note, states), note
        raise LauncherError(f"cluster {self._name} has no job '{job_id}'")

    def _ask(self) -> tuple[list[_Note], dict[str, tuple[str, str]]]:
        """Returns what is noted about the jobs, and what the scheduler says of those that it knows, by id."""
        oldest = (datetime.now(UTC) - timedelta(days=_KEPT_DAYS)).strftime(STAMP)
        # No process is started for a job: there may be hundreds.
        script = f"""cd {LINKS} 2> /dev/null || exit 0
ids=
for link in *; do
  [[ $link > {oldest} && -s $link/id ]] || continue
  cd -P "$link"
  read -r id < id
  ids+=,$id
  printf '%s\\0' "$id" "$PWD"
  for note in submitted started exit name queue; do
    text=
    [ ! -e $note ] || IFS= read -r -d '' text < $note
    printf '%s\\0' "$text"
  done
  [ ! -e cancelled ] || printf yes
  printf '\\0'
  cd {LINKS}
done
printf '\\0'
ids=${{ids#,}}
[ -z "$ids" ] || {{ {self._site.scheduler.query}
}}"""
        try:
            output = self.machine.run(script)
        except CommandError as error:
            raise ClusterUnreachableError(f"{self._site.scheduler.name} does not answer: {error}") from error
        fields = output.split(b"\0")
        texts = [os.fsdecode(text) for text in fields[:-1]]
        notes = []
        for first in range(0, len(texts) - 1, 8):
            *words, is_cancelled = texts[first : first + 8]
            notes.append(_Note(*words, is_cancelled=bool(is_cancelled)))
        try:
            states = self._site.scheduler.parse(os.fsdecode(fields[-1]))
        except (ValueError, LookupError) as error:
            raise ClusterUnreachableError(
                f"{self._site.scheduler.name} answers what cannot be read: {error}"
            ) from error
        # Another queue of the account is another cluster, whose jobs this one must not end.
        return [note for note in notes if note.queue == self.queue], states

    def _status(self, note: _Note, states: dict[str, tuple[str, str]]) -> JobStatus:
        scheduler = self._site.scheduler
        code, _, ended = note.ended.strip().partition(" ")
        if note.id in states:
            word, known = states[note.id]
            state = scheduler.state(word)
        elif note.is_cancelled and code != "0":
            word, known, state = "CANCELLED", "", JobState.CANCELLED
        elif code:
            word, known, state = (
                ("COMPLETED", "", JobState.SUCCEEDED) if code == "0" else ("FAILED", "", JobState.FAILED)
            )
        else:
            word, known, state = _FORGOTTEN.format(scheduler=scheduler.name), "", JobState.UNKNOWN
        if note.is_cancelled and state == JobState.FAILED:  # what PBS calls a job that was deleted
            state = JobState.CANCELLED
        if state == JobState.FAILED and code:
            known = explain_exit(int(code))
        is_done = state in FINAL_STATES
        return JobStatus(
            name=note.name,
            id=note.id,
            status=word,
            cluster=self._name,
            metadata=", ".join(part for part in (known, f"in {note.folder}") if part),
            done=is_done,
            state=state,
            exit_code=int(code) if is_done and code else None,
            submit_time=_time(note.submitted),
            start_at=_time(note.started),
            end_at=_time(ended) if is_done else None,
        )

    def _read(self, folder: str, num_bytes: int) -> tuple[bool, bytes]:
        """Returns whether the job's script has ended, and what comes after so many bytes of the output."""
        output = self.machine.run(f"""cd -- {shlex.quote(folder)}
[ ! -e exit ] || echo ended
echo
[ ! -e output.log ] || tail -c +{num_bytes + 1} output.log | head -c {_CHUNK_BYTES}""")
        has_ended = output.startswith(b"ended\n")
        return has_ended, output[len(b"ended\n\n") if has_ended else 1 :]


def _time(seconds: str) -> datetime | None:
    return datetime.fromtimestamp(int(seconds), UTC) if seconds.strip().isdecimal() else None
