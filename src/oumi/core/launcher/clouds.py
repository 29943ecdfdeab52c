# SPDX-License-Identifier: Apache-2.0
"""The table of clouds. A backend is one file; a site of a scheduler is one row of settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from oumi.core.launcher.cloud import BaseCloud
from oumi.core.registry import CLOUDS, import_extra_files

_SKY = ("aws", "azure", "gcp", "k8s", "lambda", "nebius", "runpod", "sky-slurm")
"""Clouds that SkyPilot reaches."""
_SITES = ("slurm", "frontier", "perlmutter", "polaris")
"""Clusters with a scheduler of batch jobs; rows of `sites.SITES`."""


def _build(module: str, class_name: str, *settings: str) -> BaseCloud:
    cloud: BaseCloud = getattr(import_module(module), class_name)(*settings)
    return cloud


def _backends() -> dict[str, Callable[[], BaseCloud]]:
    sky = {name: partial(_build, "oumi.core.launcher.sky", "SkyCloud", name) for name in _SKY}
    sites = {name: partial(_build, "oumi.core.launcher.batch", "BatchCloud", name) for name in _SITES}
    return {"local": partial(_build, "oumi.core.launcher.local", "LocalCloud"), **sites, **sky}


for _name, _builder in _backends().items():
    if _name not in CLOUDS:  # which user code may have registered before
        CLOUDS.register(_name)(_builder)


def cloud_names() -> list[str]:
    """Returns the names of all clouds, those of user files among them, sorted."""
    import_extra_files()
    return CLOUDS.names()


def build_cloud(name: str) -> BaseCloud:
    """Returns a cloud by its name; raises ConfigError with the nearest name if there is none."""
    import_extra_files()
    builder: Any = CLOUDS.get(name)
    cloud: BaseCloud = builder()
    return cloud
