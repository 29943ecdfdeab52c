# SPDX-License-Identifier: Apache-2.0
"""Starts jobs on this machine, on clusters and on clouds. Custom clouds subclass `BaseCloud` and `BaseCluster`."""

from oumi.core.launcher.cloud import (
    BaseCloud,
    BaseCluster,
    ClusterNotFoundError,
    ClusterUnreachableError,
    JobState,
    JobStatus,
    LauncherError,
    LaunchPlan,
    MissingToolError,
    NoOutputError,
)

__all__ = [
    "BaseCloud",
    "BaseCluster",
    "ClusterNotFoundError",
    "ClusterUnreachableError",
    "JobState",
    "JobStatus",
    "LaunchPlan",
    "LauncherError",
    "MissingToolError",
    "NoOutputError",
]
