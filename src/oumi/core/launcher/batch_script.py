# SPDX-License-Identifier: Apache-2.0
"""The scripts of a batch job: options for the scheduler, and what runs on the nodes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
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
_OWN_OUTPUT = ("output", "error", "keep")
_WAIT_FOR_CHECKPOINT = "trap : TERM  # which ends what runs below, and is waited for\n"


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
    own, warnings = _own_options(job, scheduler)
    keys = {scheduler.option_name(option): scheduler.option_value(option) for option in own}
    options = []
    for option in _options(job, site, queue):
        name = scheduler.option_name(option)
        if name not in keys:
            options.append(option)
        elif keys[name] != scheduler.option_value(option):
            warnings.append(f"{scheduler.directive} {name} of the job is used instead of `{option}`")
    _check_secrets(job, scheduler, keys)
    name = job.name or "oumi"
    arguments = () if "job-name" in keys else (_name_option(scheduler, name),)
    lines = [f"{scheduler.directive} {option}" for option in [*options, *own]]
    head = "\n".join(["#!/usr/bin/env bash", *lines])
    is_multi_node = job.num_nodes > 1 or keys.get("nodes", "1") != "1" or keys.get("select", "1")[:2] not in ("1", "1:")
    starts_nodes = _STARTS_NODES.search(job.run)
    run, step = "", "setup and run are one script on the first node"
    if is_multi_node and starts_nodes is None:
        run = f"#!/usr/bin/env bash\n{_WAIT_FOR_CHECKPOINT}set -e\n{job.run}\n"
        job = job.model_copy(update={"run": scheduler.on_each_node})
        step = "setup runs once, on the first node; run starts on every node at once"
    elif is_multi_node and starts_nodes is not None:
        step = f"setup and run are one script on the first node, which starts the others by {starts_nodes[1]}"
    main = job.model_copy(update={"setup": _WAIT_FOR_CHECKPOINT + (job.setup or "")})
    files = {"job.sh": f"{head}\n{scheduler.supervise}", "main.sh": job_script(main, working_dir)}
    if run:
        files["run.sh"] = run
    steps = [f"submit to {scheduler.name} as '{name}'", step]
    if scheduler.keeps_environment:
        steps.append(
            "120 s before its time ends, the job gets SIGUSR1; with exit code 75 (`oumi train` has saved a checkpoint) "
            "it goes back into the queue and goes on, at most 100 times"
        )
    return BatchScript(files, name, arguments, tuple(steps), (*warnings, *_unused(job, site)), keys.get("account", ""))


def _own_options(job: JobConfig, scheduler: Scheduler) -> tuple[list[str], list[str]]:
    """Returns the options in the lines for the scheduler of setup and run, and warnings for those that are left out."""
    text = "\n".join([job.setup or "", job.run])
    options = [
        line.removeprefix(scheduler.directive).strip()
        for line in text.splitlines()
        if line.startswith(scheduler.directive) and line[len(scheduler.directive) :].strip().startswith("-")
    ]
    dropped = [option for option in options if scheduler.option_name(option) in _OWN_OUTPUT]
    warnings = [
        f"{scheduler.directive} {option}: not used, the output goes where `oumi launch logs` reads it"
        for option in dropped
    ]
    return [option for option in options if option not in dropped], warnings


def _options(job: JobConfig, site: Site, queue: str) -> Iterator[str]:
    """Yields the options that keys of the job stand for."""
    for option in site.options:
        yield option.format(nodes=job.num_nodes, queue=queue)
    if site.scheduler.keeps_environment:
        yield from ("--export=ALL", "--open-mode=append", "--requeue", "--signal=B:USR1@120")
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
    # PBS takes no blanks, and names that begin with a letter or a digit only.
    return f"--job-name={name}" if scheduler.keeps_environment else "-N" + re.sub(r"\W+", "-", name).strip("-_")


def _unused(job: JobConfig, site: Site) -> Iterator[str]:
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
