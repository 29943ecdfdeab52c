# SPDX-License-Identifier: Apache-2.0
"""The former import path of `oumi.core.models.acceleration.cpu_layers`, kept for programs that use it."""

from oumi.core.models.acceleration.cpu_layers import fuse_layers  # noqa: F401
