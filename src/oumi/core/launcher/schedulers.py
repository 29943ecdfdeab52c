# SPDX-License-Identifier: Apache-2.0
"""The table of schedulers: their commands, their options and their words for the states of a job."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from oumi.core.launcher.cloud import JobState


@dataclass(frozen=True)
class Scheduler:
    """A program that runs batch jobs on the machines of a cluster. Commands are lines of bash."""

    name: str
    program: str
    """The command that exists wherever the scheduler can be used."""
    directive: str
    """How a line of a script begins that is an option."""
    submit: str
    """Prints the job's id; `$name` is its name, `$options` an array of more options."""
    query: str
    """Prints the states of the jobs `$ids`, which are separated by commas."""
    parse: Callable[[str], dict[str, tuple[str, str]]]
    """Takes the output of `query`; returns the state and what else is known, by the job's id."""
    cancel: str
    """Ends the job `$id` with all of its processes."""
    on_each_node: str
    """Starts `run.sh` once on each node."""
    letters: Mapping[str, str]
    """Names of options by their letters."""
    supervise: str
    """The rest of the batch script, which starts `main.sh`."""
    keeps_environment: bool
    """The job gets the environment of the command that submits it, and the scheduler shows it to nobody else."""
    states: Mapping[str, JobState]

    def state(self, word: str) -> JobState:
        """Returns the state that a word of the scheduler stands for; UNKNOWN for a word that is not in the table."""
        return self.states.get(word, JobState.UNKNOWN)

    def options(self, text: str) -> list[tuple[str, str]]:
        """Returns the names and values of options such as `--nodes=2 -t 5`; a resource of PBS counts as an option.

        Raises:
            ValueError: A quotation is not closed.
        """
        options: list[tuple[str, str]] = []
        for word in shlex.split(text, comments=True):
            if word.startswith("--"):
                name, _, value = word[2:].partition("=")
                options.append((name, value))
            elif word.startswith("-") and word[1:2].isalpha():
                options.append((self.letters.get(word[1], word[1]), word[2:]))
            elif options and not options[-1][1]:
                options[-1] = options[-1][0], word
        resources = [part.partition("=") for name, value in options if name == "l" for part in value.split(",")]
        return [option for option in options if option[0] != "l"] + [(name, value) for name, _, value in resources]


def _by_word(words: Mapping[JobState, str]) -> dict[str, JobState]:
    return {word: state for state, text in words.items() for word in text.split()}


def _slurm_states(output: str) -> dict[str, tuple[str, str]]:
    """Parses lines `id|state|reason`; those of squeue come before those of sacct, which may lag behind."""
    states: dict[str, tuple[str, str]] = {}
    for line in output.splitlines():
        job_id, _, rest = line.partition("|")
        word, _, reason = rest.partition("|")
        # sacct says `CANCELLED by 1000`.
        states.setdefault(job_id, (word.partition(" ")[0], "" if reason in ("None", "") else reason))
    return states


def _pbs_states(output: str) -> dict[str, tuple[str, str]]:
    """Parses the JSON of qstat; a job that has ended gets its exit code into its state, which is `F` otherwise.

    Raises ValueError for what is no JSON: PBS writes texts into it as they are.
    """
    jobs = json.loads(output or "{}", strict=False).get("Jobs", {})
    states = {}
    for job_id, job in jobs.items():
        word, code = job["job_state"], job.get("Exit_status")
        if word == "F" and code is not None:
            word = "F0" if code == 0 else "F1"
        states[job_id] = word, job.get("comment", "")
    return states


_WARN = r"""# The outermost processes that answer SIGUSR1 get it, and pass it on; it would end all others.
warn() {
  local pid mask key value
  for pid in $(pgrep -P "$1"); do
    mask=0
    while read -r key value; do
      case $key in SigCgt:|SigBlk:) (( mask |= 0x$value )) ;; esac
    done < <(cat "/proc/$pid/status" 2>/dev/null)  # it may have ended by now
    if (( mask & 0x200 )); then kill -USR1 "$pid"; else warn "$pid"; fi
  done
}
"""

_START = r"""export OUMI_JOB_DIR=$PWD
unset OUMI_JOB_RESTARTS  # of a job that launched this one
[ ! -e started ] || export OUMI_JOB_RESTARTS=1  # back from the queue: the run resumes
rm -f exit
date +%s > started
trap : TERM  # all processes get it from the scheduler; this one stays to write down how the job ended
bash main.sh &
main=$!
while wait "$main"; code=$?; kill -0 "$main" 2>/dev/null; do :; done
wait "$main"
code=$?
"""

_END = """echo "$code $(date +%s)" > exit.new && mv exit.new exit
exit "$code"
"""

_SLURM_SUPERVISE = rf"""cd -- "$SLURM_SUBMIT_DIR"
echo "$SLURM_JOB_ID" > id
{_WARN}trap 'warn $$' USR1
{_START}# 75: stopped with a checkpoint. A job that is cancelled or back in the queue already does not run any more.
if [ "$code" = 75 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge 100 ]; then
    echo "oumi: not put back into the queue, after 100 times"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "oumi: back in the queue; it goes on from its last checkpoint"
    exit 75
  fi
fi
{_END}"""

_PBS_SUPERVISE = f"""cd -- "$PBS_O_WORKDIR"
exec >> output.log 2>&1  # PBS would copy the output when the job has ended
echo "$PBS_JOBID" > id
[ ! -e secrets.sh ] || . ./secrets.sh
{_START}rm -f secrets.sh
{_END}"""

SLURM = Scheduler(
    name="Slurm",
    program="sbatch",
    directive="#SBATCH",
    submit="""output=$PWD/output.log
sbatch --parsable "${options[@]}" --output="$output" --error="$output" job.sh | cut -d ';' -f 1""",
    query="""squeue -h -t all -u "$(id -un)" -o '%i|%T|%r' || exit
sacct -n -P -X -j "$ids" -o JobID,State 2>/dev/null || :  # where Slurm keeps accounts""",
    parse=_slurm_states,
    cancel='scancel "$id"',
    # The launcher of a node starts all of its processes, which need all of its cores. Both --ntasks and --export are
    # named, since srun takes them from the job's own lines otherwise.
    on_each_node='srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 '
    '--cpu-bind=none bash "$OUMI_JOB_DIR/run.sh"',
    letters={
        **{"A": "account", "a": "array", "C": "constraint", "D": "chdir", "G": "gpus", "J": "job-name", "N": "nodes"},
        **{"c": "cpus-per-task", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time"},
    },
    supervise=_SLURM_SUPERVISE,
    keeps_environment=True,
    states=_by_word(
        {
            JobState.PENDING: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
            # A job that is suspended or stopped still has its machines.
            JobState.RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED",
            JobState.SUCCEEDED: "COMPLETED",
            JobState.CANCELLED: "CANCELLED",
            JobState.FAILED: "BOOT_FAIL DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL "
            "REVOKED TIMEOUT",
        }
    ),
)

PBS = Scheduler(
    name="PBS",
    program="qsub",
    directive="#PBS",
    # It takes no shell from the first line of a script.
    submit='qsub "${options[@]}" -S /bin/bash -j oe -o "$PWD/scheduler.log" job.sh',
    # It knows no list of ids with commas; 153: of some of them it knows nothing any more.
    query='qstat -x -f -F json ${ids//,/ } || [ "$?" = 153 ]',
    parse=_pbs_states,
    cancel='qdel "$id"',
    on_each_node='mpiexec -n "$(sort -u "$PBS_NODEFILE" | wc -l)" --ppn 1 bash "$OUMI_JOB_DIR/run.sh"',
    letters={"A": "account", "J": "array", "N": "job-name", "e": "error", "k": "keep", "o": "output", "q": "queue"},
    supervise=_PBS_SUPERVISE,
    keeps_environment=False,
    states=_by_word(
        # F: ended without an exit code, so it was deleted before it ran, or could not start.
        {JobState.PENDING: "H Q T W", JobState.RUNNING: "B E R S U", JobState.SUCCEEDED: "F0", JobState.FAILED: "F F1"}
    ),
)
