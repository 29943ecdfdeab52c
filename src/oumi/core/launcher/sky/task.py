# SPDX-License-Identifier: Apache-2.0
"""A job as a task of SkyPilot. Pure: nothing is asked of SkyPilot, a cloud or the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from oumi.core.configs import JobConfig, TrainingConfig
from oumi.core.configs.loading import locate
from oumi.core.errors import ConfigError, OumiError, Problem
from oumi.core.launcher.script import check_variables, not_storable
from oumi.core.recipes import resolve_config
from oumi.core.system.filesystem import expanded

INFRA = {"k8s": "kubernetes", "sky-slurm": "slurm"}
"""SkyPilot's names of clouds where they differ from ours."""
_CANNOT_STOP = ("k8s", "lambda", "runpod", "sky-slurm")
_STOPS_SPOT = ("gcp", "nebius")
_SCHEMES = {"s3": "s3://", "gcs": "gs://", "r2": "r2://"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
SAFE_PATH = re.compile(r"[A-Za-z0-9._/~+:=,@-]+")
"""Paths that mean the same in every shell: SkyPilot does not quote all of those that it passes on."""
_WORKING_DIR = PurePosixPath("~/sky_workdir")
"""Where SkyPilot puts the working directory."""


def make_task(job: JobConfig) -> dict[str, Any]:
    """Returns the task of a job as its YAML would be read, without secrets, which have values only at launch.

    Raises:
        ConfigError: A name, a mount or a variable that no task can have.
    """
    check_variables("envs", job.envs)
    texts = {"name": job.name, "working_dir": job.working_dir, "setup": job.setup, "run": job.run}
    problems = [
        Problem(key, reason, locate(job, key)) for key, text in texts.items() if text and (reason := not_storable(text))
    ]
    problems += _wrong_mounts(job)
    if problems:
        raise ConfigError(problems, "job")
    task = {
        "name": plain_name(job.name),
        "resources": _resources(job),
        "num_nodes": job.num_nodes,
        "workdir": job.working_dir,
        "config": job.resources.config_overrides,
        "envs": dict(job.envs),
        "file_mounts": {
            **job.file_mounts,
            **{
                remote: {"source": mount.source, "store": mount.store, "mode": "MOUNT"}
                for remote, mount in job.storage_mounts.items()
            },
        },
        "setup": job.setup,
        "run": job.run,
    }
    return {key: value for key, value in task.items() if value not in (None, {})}


def plain_name(name: str | None) -> str | None:
    """Returns a name without the characters that a cloud or a shell may take for something else."""
    return _UNSAFE.sub("-", name).strip("-.") or None if name else None


def task_text(task: dict[str, Any], secrets: list[str]) -> str:
    """Returns a task as YAML; of secrets only the names."""
    text = block_yaml(task)
    if secrets:
        names = "".join(f"  {name}:  # from your environment at launch\n" for name in secrets)
        text += f"secrets:\n{names}"
    return text


def job_key(key: str, job: JobConfig) -> str:
    """Returns the key of a job that became a key of its task."""
    if key == "resources.infra":
        return "resources.zone" if job.resources.zone else "resources.region" if job.resources.region else _CLOUD
    mount = key.removeprefix("file_mounts.")
    if mount != key and mount in job.storage_mounts:
        return f"storage_mounts.{mount}"
    renamed = {"config": "resources.config_overrides", "workdir": "working_dir"}
    if key == "resources.image_id" and job.resources.image_id is None:
        return "resources.image_id_map"
    return renamed.get(key, key)


_CLOUD = "resources.cloud"


def reason_not_to_stop(job: JobConfig) -> str | None:
    """Returns why the machines of a job cannot be stopped and started again, None if they can."""
    cloud = job.resources.cloud.lower()
    if cloud in _CANNOT_STOP:
        return f"{cloud} cannot stop machines"
    if job.resources.use_spot and cloud not in _STOPS_SPOT:
        return f"{cloud} cannot stop spot machines"
    return None


def task_warnings(job: JobConfig) -> Iterator[str]:
    """Yields what of a job SkyPilot does not carry out as it stands, and what may be lost."""
    if job.user:
        yield f"user: not read: {job.resources.cloud} is used with the account of your credentials"
    if job.resources.image_id and job.resources.image_id_map:
        yield "resources.image_id_map: not read, since resources.image_id is set"
    if job.name and (name := plain_name(job.name)) != job.name:
        yield f"name: SkyPilot is given {name!r}, since other characters than letters, digits, . _ - are not safe there"
    if job.resources.use_spot and not _keeps_checkpoints(job):
        directory = output_dir(job) or "which is not known here"
        yield (
            "resources.use_spot: the machines may be taken away at any time, with their disks. Checkpoints are kept "
            f"only below a path of storage_mounts, and no such path contains training.output_dir ({directory})"
        )


def output_dir(job: JobConfig) -> str | None:
    """Returns the output directory of the training that a job runs, None if that is not known here."""
    match = re.search(r"--training\.output_dir[= ]['\"]?([^\s'\"]+)", job.run)
    if match:
        return None if "$" in match[1] else match[1]
    match = re.search(r"oumi\s+train\b.*?\s(?:-c|--config)[= ]['\"]?([^\s'\"]+)", job.run, re.DOTALL)
    if not match:
        return None
    local = expanded(job.working_dir or ".") / match[1]
    try:
        config = TrainingConfig.draft(local if local.is_file() else resolve_config(match[1])).config
    except OumiError:  # a file of the other machine
        return None
    return config.training.output_dir if config else None


def _keeps_checkpoints(job: JobConfig) -> bool:
    directory = output_dir(job)
    if directory is None:
        return False
    path = _WORKING_DIR / directory if not directory.startswith(("/", "~")) else PurePosixPath(directory)
    return any(
        path.is_relative_to(mount if mount.startswith(("/", "~")) else _WORKING_DIR / mount)
        for mount in job.storage_mounts
    )


def _resources(job: JobConfig) -> dict[str, Any]:
    resources = job.resources
    cloud = resources.cloud.lower()
    place = [INFRA.get(cloud, cloud), resources.region or ("*" if resources.zone else None), resources.zone]
    values = {
        "infra": "/".join(part for part in place if part),
        "accelerators": resources.accelerators,
        "cpus": resources.cpus,
        "memory": resources.memory,
        "instance_type": resources.instance_type,
        "use_spot": resources.use_spot,
        "disk_size": resources.disk_size,
        "disk_tier": resources.disk_tier,
        "image_id": resources.image_id or resources.image_id_map,
    }
    return {key: value for key, value in values.items() if value is not None}


def _wrong_mounts(job: JobConfig) -> Iterator[Problem]:
    for key in ("file_mounts", "storage_mounts"):
        for remote in getattr(job, key):
            if not SAFE_PATH.fullmatch(remote):
                message = "SkyPilot passes paths to shells; expected letters, digits and . _ / ~ + : = , @ - only"
                yield Problem(f"{key}.{remote}", message, locate(job, key))
    for remote, mount in job.storage_mounts.items():
        key, scheme = f"storage_mounts.{remote}", _SCHEMES[mount.store]
        if not mount.source.startswith(scheme) or not SAFE_PATH.fullmatch(mount.source):
            message = f"expected {scheme}... for store {mount.store}, got {mount.source}"
            yield Problem(f"{key}.source", message, locate(job, "storage_mounts"))
        if remote in job.file_mounts:
            yield Problem(key, "is also a path of file_mounts", locate(job, "storage_mounts"))
    for remote, local in job.file_mounts.items():
        if "://" in local and not SAFE_PATH.fullmatch(local):
            yield Problem(f"file_mounts.{remote}", f"{local}: not the URL of a bucket", locate(job, "file_mounts"))
        elif "://" not in local and not expanded(local).exists():
            yield Problem(f"file_mounts.{remote}", f"{local}: no such file or directory", locate(job, "file_mounts"))


def block_yaml(values: dict[str, Any]) -> str:
    """Returns values as YAML in their order, with scripts as blocks."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks, as users do."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)
