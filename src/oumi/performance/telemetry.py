# SPDX-License-Identifier: Apache-2.0
"""A documented import path of Oumi."""

from oumi.core.monitoring.telemetry import TelemetryTracker  # noqa: F401
