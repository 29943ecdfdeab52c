# SPDX-License-Identifier: Apache-2.0
"""Starts jobs anywhere: `cluster, status = up(JobConfig.from_yaml(path), "name")`. The same calls as `oumi launch`."""

from oumi.core.configs import JobConfig, JobResources, StorageMount
from oumi.core.launcher.launcher import Launcher

LAUNCHER = Launcher()
up = LAUNCHER.up
run = LAUNCHER.run
plan = LAUNCHER.plan
status = LAUNCHER.status
stop = LAUNCHER.stop
down = LAUNCHER.down
cancel = LAUNCHER.cancel
logs = LAUNCHER.logs
get_cloud = LAUNCHER.get_cloud
which_clouds = LAUNCHER.which_clouds

__all__ = [
    "LAUNCHER",
    "JobConfig",
    "JobResources",
    "Launcher",
    "StorageMount",
    "cancel",
    "down",
    "get_cloud",
    "logs",
    "plan",
    "run",
    "status",
    "stop",
    "up",
    "which_clouds",
]
