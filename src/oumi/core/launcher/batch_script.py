# SPDX-License-Identifier: Apache-2.0
"""The scripts of a batch job: options for the scheduler, and what runs on the nodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from oumi.core.configs import JobConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, Problem
from oumi.core.launcher.schedulers import Scheduler
from oumi.core.launcher.script import job_script
from oumi.core.launcher.sites import Site

_ACCELERATORS = re.compile(r"(?P<kind>[A-Za-z][\w.-]*)?(:?(?P<count>[0-9]+))?")
_STARTS_NODES = re.compile(r"^[^#\n]*\b(srun|mpiexec|mpirun)\b", re.MULTILINE)
_UNUSED = {
    "region": "", "zone": "", "instance_type": "", "disk_size": "", "disk_tier": "", "image_id": "",
    "image_id_map": "", "config_overrides": "",
    "use_spot": "; name a queue that may be preempted in a `{directive}` line",
}  # fmt: skip
"""Keys of `resources` that no scheduler knows, and what to do instead."""
_SHORT_S = 600
"""A time limit below it leaves no time to train after a warning, which Slurm may send a minute early."""
_OF_CPUS = {"cpus-per-gpu", "cpus-per-task", "exclusive", "ntasks"}
_SAME = {
    "cpus-per-task": ("cpus-per-gpu",),
    "gres": ("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"),
    "mem": ("mem-per-cpu", "mem-per-gpu"),
    "place": ("nodes",),
    "requeue": ("no-requeue",),
    "select": ("nodes",),
}
"""Options that a scheduler refuses beside an option of ours, or that say the same."""
_UNUSED_OPTIONS = {
    **dict.fromkeys(("output", "error", "keep"), "output goes where `oumi launch logs` reads it"),
    "chdir": "the job starts in working_dir",
}
"""Options of a job's own lines that have no effect, and why."""
_STAY = "trap : {signals}  # what runs below ends with a checkpoint, and this script waits for it\n"


@dataclass(frozen=True)
class BatchScript:
    """What a scheduler is given."""

    files: dict[str, str]
    """`job.sh`, which the scheduler starts on the first node; `main.sh` that it starts; `run.sh` for each node."""
    name: str
    """Name of the job."""
    arguments: tuple[str, ...]
    """More options, for the command that submits it."""
    steps: tuple[str, ...]
    """What it does, a sentence each."""
    warnings: tuple[str, ...]
    account: str = ""
    """The account that the job's own lines name."""

    def __str__(self) -> str:
        return "\n".join(f"# ---- {name}\n{text}" for name, text in self.files.items())


def batch_script(job: JobConfig, site: Site, queue: str, working_dir: str) -> BatchScript:
    """Returns the scripts of a job.

    Args:
        job: The job.
        site: The cluster.
        queue: Queue of the site, if it has any.
        working_dir: Where the job starts, relative to its folder or absolute.

    Raises:
        ConfigError: A value is wrong, or the cluster can never do what the job asks for.
    """
    scheduler = site.scheduler
    own, warnings = _own_lines(job, scheduler)
    keys = _own_options(own, scheduler)
    options = []
    is_warned = scheduler.keeps_environment and _seconds(keys.get("time", "")) >= _SHORT_S
    for option in [*_options(job, site, queue), *(["--signal=B:USR1@120"] if is_warned else [])]:
        [(key, value)] = scheduler.options(option)
        own_key = next((name for name in (key, *_SAME.get(key, ())) if name in keys), None)
        if own_key is None:
            options.append(option)
        elif keys[own_key] != value or own_key != key:
            warnings.append(f"`{option}` is not used, since a {scheduler.directive} line of the job sets {own_key}")
    _check_secrets(job, scheduler, keys)
    name = keys.get("job-name") or job.name or "oumi"
    lines = [f"{scheduler.directive} {option}" for option in [*options, *own]]
    files, step = _files(job, scheduler, _num_nodes(job, keys), working_dir)
    files["job.sh"] = "\n".join(["#!/usr/bin/env bash", *lines, scheduler.supervise])
    steps = [f"submit to {scheduler.name} as '{name}'", step]
    if is_warned and keys.keys().isdisjoint({"signal", "no-requeue"}):
        steps.append(
            "120 s before its time ends, the job gets SIGUSR1; with exit code 75 (`oumi train` has saved a checkpoint) "
            "it goes back into the queue and goes on, at most 100 times"
        )
    return BatchScript(
        files={file: files[file] for file in sorted(files)},
        name=name,
        arguments=() if "job-name" in keys else (_name_option(scheduler, name),),
        steps=tuple(steps),
        warnings=(*warnings, *_doubts(job, site, keys), *_unused_options(keys, scheduler), *_unused_keys(job, site)),
        account=keys.get("account", ""),
    )


def _files(job: JobConfig, scheduler: Scheduler, num_nodes: int, working_dir: str) -> tuple[dict[str, str], str]:
    """Returns `main.sh`, `run.sh` where several nodes need it, and a sentence on what runs where."""
    starts_nodes = _STARTS_NODES.search(job.run)
    files, step = {}, "setup and run are one script on the first node"
    run = job.run
    if num_nodes > 1 and starts_nodes is None:
        files["run.sh"] = f"#!/usr/bin/env bash\n{_STAY.format(signals='TERM USR1')}set -e\n{job.run}\n"
        run, step = scheduler.on_each_node, "setup runs once, on the first node; run starts on every node at once"
    elif num_nodes > 1 and starts_nodes is not None:
        step += f", which starts the others by {starts_nodes[1]}"
    setup = _STAY.format(signals="TERM") + (job.setup or "")  # SIGUSR1 passes by, to the programs that answer it
    files["main.sh"] = job_script(job.model_copy(update={"setup": setup, "run": run}), working_dir)
    return files, step


def _own_lines(job: JobConfig, scheduler: Scheduler) -> tuple[list[str], list[str]]:
    """Returns what the lines for the scheduler in setup and run say, and warnings for lines that say nothing to it."""
    text = "\n".join([job.setup or "", job.run])
    lines = [line for line in text.splitlines() if line.startswith(scheduler.directive)]
    texts = [line.removeprefix(scheduler.directive).strip() for line in lines]
    warnings = [
        f"`{line}` is not used: expected an option" for line, text in zip(lines, texts, strict=True) if text[:1] != "-"
    ]
    return [text for text in texts if text.startswith("-")], warnings


def _own_options(lines: list[str], scheduler: Scheduler) -> dict[str, str]:
    """Returns the options in lines of a job, by name; raises ConfigError for those that no launched job can have."""
    keys: dict[str, str] = {}
    for line in lines:
        try:
            keys.update(scheduler.options(line))
        except ValueError as error:
            raise ConfigError([Problem("", f"`{scheduler.directive} {line}`: {error}")], "job") from error
    if "array" in keys:
        message = f"`{scheduler.directive} --array`: the jobs of an array would share one output; launch each by itself"
        raise ConfigError([Problem("", message)], "job")
    return keys


def _num_nodes(job: JobConfig, keys: Mapping[str, str]) -> int:
    """Returns the nodes that the job gets at least."""
    text = keys.get("nodes") or keys.get("select")
    # PBS adds chunks, `2:ncpus=8+1:ncpus=16`, of which each is one without a number.
    return sum(int(count or 1) for count in re.findall(r"(?:^|\+)([0-9]*)", text)) if text else job.num_nodes


def _seconds(limit: str) -> float:
    """Returns a time limit of Slurm, `[days-]hours:minutes:seconds` and shorter forms; infinite if it is none."""
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", limit)
    if match is None:
        return float("inf")
    numbers = [int(group) for group in match.groups()[1:] if group]
    # The last number counts seconds, one alone minutes, and hours after days.
    units = (3600, 60, 1) if match[1] or len(numbers) == 3 else (60, 1)
    return int(match[1] or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))


def _options(job: JobConfig, site: Site, queue: str) -> Iterator[str]:
    """Yields the options that keys of the job stand for."""
    for option in site.options:
        yield option.format(nodes=job.num_nodes, queue=queue)
    if site.scheduler.keeps_environment:
        yield from ("--export=ALL", "--open-mode=append", "--requeue")
    if site.node:
        return
    resources = job.resources
    if resources.accelerators:
        yield f"--gres=gpu:{_accelerators(job, resources.accelerators)}"
    if resources.cpus:
        yield f"--cpus-per-task={_number(job, 'cpus', resources.cpus)}"
    if resources.memory:
        yield f"--mem={_number(job, 'memory', resources.memory)}G"


def _accelerators(job: JobConfig, text: str) -> str:
    match = _ACCELERATORS.fullmatch(text.strip())
    if match is None or match["count"] == "0":
        key = "resources.accelerators"
        raise ConfigError([Problem(key, f"is '{text}': expected such as A100:4 or 4", locate(job, key))], "job")
    return f"{match['kind']}:{match['count'] or 1}" if match["kind"] else match["count"]


def _number(job: JobConfig, key: str, text: str) -> int:
    """Returns the number that a scheduler is asked for: what it gives to a job for `8+`, too."""
    number = text.strip().removesuffix("+")
    if not number.isdecimal() or not int(number):
        raise ConfigError(
            [Problem(f"resources.{key}", f"is '{text}': expected such as 8", locate(job, f"resources.{key}"))], "job"
        )
    return int(number)


def _check_secrets(job: JobConfig, scheduler: Scheduler, keys: dict[str, str]) -> None:
    export = keys.get("export", "ALL").split(",")
    absent = [name for name in job.secrets if name not in export]
    if scheduler.keeps_environment and "ALL" not in export and absent:
        line = f"{scheduler.directive} --export={','.join([*export, *absent])}"
        raise ConfigError([Problem("secrets", f"`--export={keys['export']}` keeps them out; write `{line}`")], "job")


def _name_option(scheduler: Scheduler, name: str) -> str:
    if scheduler.keeps_environment:
        return f"--job-name={name}"
    # PBS takes no blanks, no name that begins with another sign than a letter or a digit, and at most 230 of them.
    return "-N" + (re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-_")[:230] or "oumi")


def _doubts(job: JobConfig, site: Site, keys: Mapping[str, str]) -> Iterator[str]:
    has_cpus = job.resources.cpus or not _OF_CPUS.isdisjoint(keys)
    if job.resources.accelerators and not site.node and not has_cpus:
        yield "resources.cpus: not set, and many clusters give one CPU to a job then, whatever its GPUs"


def _unused_options(keys: Mapping[str, str], scheduler: Scheduler) -> Iterator[str]:
    for key, reason in _UNUSED_OPTIONS.items():
        if key in keys:
            yield f"{key} of a {scheduler.directive} line is not used: {reason}"


def _unused_keys(job: JobConfig, site: Site) -> Iterator[str]:
    """Yields a warning for each key of the job that is not carried out."""
    cloud = job.resources.cloud
    for key, hint in _UNUSED.items():
        if getattr(job.resources, key):
            yield f"resources.{key}: not used on {cloud}{hint.format(directive=site.scheduler.directive)}"
    for key in ("accelerators", "cpus", "memory"):
        if site.node and getattr(job.resources, key):
            yield f"resources.{key}: not used on {cloud}, where a job gets whole nodes with {site.node}"


def quoted(values: tuple[str, ...]) -> str:
    """Returns values as the words of an array of bash."""
    return f"({' '.join(shlex.quote(value) for value in values)})"
