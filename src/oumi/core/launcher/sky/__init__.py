# SPDX-License-Identifier: Apache-2.0
"""Clouds that SkyPilot reaches."""

from oumi.core.launcher.sky.cloud import SkyCloud, SkyCluster

__all__ = ["SkyCloud", "SkyCluster"]
