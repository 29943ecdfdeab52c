# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.monitoring.console import is_due
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.plan.parts import Plan
from oumi.core.run import Progress


def build_trackers(plan: Plan) -> list[Sink]:
    """Returns the trackers that the plan enables; raises ConfigError if the package of one is missing."""
    trackers: list[Sink] = []
    if plan.logs.tensorboard_dir is not None:
        trackers.append(TensorBoard(plan))
    # Imported here, before training begins, so that a missing package fails early.
    if plan.logs.wandb:
        trackers.append(Wandb(plan, _import_package("wandb", "training.enable_wandb")))
    if plan.logs.mlflow:
        trackers.append(Mlflow(plan, _import_package("mlflow", "training.enable_mlflow")))
    return trackers


class _Tracker(Sink):
    """Base class: selects the steps that the plan reports, and prefixes names by `train/` or `eval/`."""

    def __init__(self, plan: Plan, package: Any = None) -> None:
        self._plan = plan
        self._package = package
        self._epoch = 0

    def step(self, run: Progress, record: Record, extra: Sequence[str]) -> None:
        if is_due(self._plan.logs, run, self._epoch):
            self.write(_prefixed("train", record), run.state.step)
        self._epoch = int(run.state.epoch)

    def measured(self, run: Progress, record: Record) -> None:
        self.write(_prefixed("eval", record), run.state.step)

    def write(self, values: Record, step: int) -> None:
        """Passes named values of a step to the tracker."""
        raise NotImplementedError


class TensorBoard(_Tracker):
    """Writes event files to `tensorboard/`."""

    _writer: Any = None

    def start(self, run: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._epoch = int(run.state.epoch)
        # A resumed run repeats the steps after its checkpoint, whose old events would be shown as well.
        purge = run.state.step + 1 if run.state.step else None
        self._writer = SummaryWriter(str(self._plan.logs.tensorboard_dir), purge_step=purge)

    def write(self, values: Record, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # by default, SummaryWriter flushes only every two minutes

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb(_Tracker):
    """Logs to a Weights & Biases run in the project WANDB_PROJECT, `oumi` by default."""

    _run: Any = None

    def start(self, run: Progress) -> None:
        # Passed explicitly, since the default of wandb without the variable is "uncategorized".
        project = os.environ.get("WANDB_PROJECT", "oumi")
        self._run = self._package.init(project=project, name=self._plan.run_name, job_type="train")

    def write(self, values: Record, step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class Mlflow(_Tracker):
    """Logs to the active MLflow run, or to a new one if there is none."""

    _is_ours = False

    def start(self, run: Progress) -> None:
        if self._package.active_run() is None:
            self._package.start_run(run_name=self._plan.run_name)
            self._is_ours = True

    def write(self, values: Record, step: int) -> None:
        self._package.log_metrics(values, step=step)

    def close(self) -> None:
        if self._is_ours:  # the owner of an active run may log more to it
            self._package.end_run()


def _prefixed(prefix: str, record: Record) -> Record:
    """Returns the values with names such as `train/loss` and `eval/loss`."""
    return {f"{prefix}/{name.removeprefix('eval_')}": value for name, value in record.items() if name != "step"}


def _import_package(name: str, key: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{key}: package {name} is not installed: pip install 'oumi[tracking]'") from error
