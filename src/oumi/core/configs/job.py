# SPDX-License-Identifier: Apache-2.0
"""A job: a script and the machines that run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from oumi.core.configs.base import Complaint, Params, ScalarText
from oumi.core.configs.loading import BaseConfig, locate
from oumi.core.errors import Problem

_NEEDS_USER = ("polaris", "frontier", "perlmutter")
_NEEDS_WORKING_DIR = ("local", "frontier", "perlmutter")


class JobResources(Params):
    """The machines of a job."""

    cloud: str
    """Where it runs: `local`, `slurm`, `gcp`, `aws`, `k8s`, ..."""
    region: str | None = None
    """Region of the cloud."""
    zone: str | None = None
    """Zone of the region."""
    accelerators: str | None = None
    """Such as `A100:4`."""
    cpus: str | None = None
    """CPUs, `8+` for at least 8."""
    memory: str | None = None
    """GiB, `32+` for at least 32."""
    instance_type: str | None = None
    """The cloud's name of a machine."""
    use_spot: bool = False
    """Use cheaper machines that may be preempted."""
    disk_size: PositiveInt | None = None
    """GiB."""
    disk_tier: Literal["low", "medium", "high", "ultra", "best"] | None = None
    """Speed of the disk."""
    image_id: str | None = None
    """Machine image, or `docker:<image>`."""
    image_id_map: dict[str, str] | None = None
    """Machine image by region."""
    config_overrides: dict[str, Any] | None = None
    """SkyPilot settings of this cluster."""


class StorageMount(Params):
    """A bucket that a job sees as a directory."""

    source: str
    """URL of the bucket."""
    store: Literal["s3", "gcs", "r2"]
    """Kind of the bucket."""


class JobConfig(BaseConfig):
    """A job file. `${...}` in it belongs to the shell."""

    # Scripts of a job contain `${VAR}` for the shell of the node.
    has_references: ClassVar[bool] = False

    name: str | None = None
    """Name to show."""
    user: str | None = None
    """Account on the cluster; may be named at launch, as part of the cluster's name."""
    working_dir: str | None = None
    """Local directory that is copied to the nodes; may be named at launch."""
    num_nodes: PositiveInt = 1
    """Machines."""
    resources: JobResources
    """Resources of each machine."""
    envs: dict[str, ScalarText] = {}
    """Environment of the job."""
    secrets: list[str] = []
    """Names of variables of your environment that the job gets; their values are in no file, command line or log."""
    file_mounts: dict[str, str] = {}
    """Remote path to local path."""
    storage_mounts: dict[str, StorageMount] = {}
    """Remote path to bucket."""
    setup: str | None = None
    """Script that prepares a node."""
    run: str
    """Script that runs on every node."""

    def complaints(self) -> Iterator[Complaint]:
        if not self.run.strip():
            yield "run", "required, but empty"
        for name in self.secrets:
            if name in self.envs:
                yield f"secrets.{name}", "is a variable of envs, too; keep it in one of them"

    def missing_at_launch(self, cluster: str | None = None) -> list[Problem]:
        """Returns the keys that the cloud of the job requires and that must still be set at launch.

        Args:
            cluster: Name of the cluster, which has that of the user in it.
        """
        cloud = self.resources.cloud.lower()
        needs = {"user": _NEEDS_USER, "working_dir": _NEEDS_WORKING_DIR}
        return [
            Problem(key, f"required on {cloud} at launch", locate(self, key))
            for key, clouds in needs.items()
            if cloud in clouds and not getattr(self, key) and not (key == "user" and cluster)
        ]
