# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.monitoring.telemetry import TelemetryTracker  # noqa: F401
