# SPDX-License-Identifier: Apache-2.0
"""Who is told of a run, the same for every trainer."""

from __future__ import annotations

from oumi.core.callbacks.console import Console
from oumi.core.callbacks.metrics_file import MetricsFile
from oumi.core.callbacks.reporting import Reporting, Sink
from oumi.core.callbacks.telemetry import Telemetry
from oumi.core.callbacks.trackers import build_trackers
from oumi.core.plan.parts import Plan


def build_reporting(plan: Plan) -> Reporting:
    """Returns the callback that shows and keeps what a run measures."""
    sinks: list[Sink] = [Console(plan.logs), MetricsFile(), *build_trackers(plan)]
    if plan.logs.step_times and plan.logs.telemetry_dir is not None:
        sinks.append(Telemetry(plan.logs.telemetry_dir))
    return Reporting(sinks)
