# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.monitoring.console import is_due
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.plan.parts import Plan
from oumi.core.run import Progress


def build_trackers(plan: Plan) -> list[Sink]:
    """Returns the trackers that the plan switches on; one whose package is missing is a ConfigError."""
    trackers: list[Sink] = []
    if plan.logs.tensorboard_dir is not None:
        trackers.append(TensorBoard(plan))
    if plan.logs.wandb:
        trackers.append(Wandb(plan))
    if plan.logs.mlflow:
        trackers.append(Mlflow(plan))
    return trackers


class _Tracker(Sink):
    """Writes records when the plan wants a step told. `train/` and `eval/` go before the names."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._epoch = 0

    def step(self, run: Progress, record: Record) -> None:
        if is_due(self._plan.logs, run, self._epoch):
            self.write(_named("train", record), run.state.step)
        self._epoch = int(run.state.epoch)

    def measured(self, run: Progress, record: Record) -> None:
        self.write(_named("eval", record), run.state.step)

    def write(self, values: Record, step: int) -> None:
        """Hands named values of a step to the tracker."""
        raise NotImplementedError


class TensorBoard(_Tracker):
    """Event files under `tensorboard/`."""

    _writer: Any = None

    def start(self, run: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._epoch = int(run.state.epoch)
        # Events after the step that a resumed run goes on from are of steps that it takes again.
        purge = run.state.step + 1 if run.state.step else None
        self._writer = SummaryWriter(str(self._plan.logs.tensorboard_dir), purge_step=purge)

    def write(self, values: Record, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb(_Tracker):
    """A Weights & Biases run; project `oumi` unless WANDB_PROJECT names another."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        try:
            import wandb
        except ImportError as error:
            raise _missing("training.enable_wandb") from error
        self._wandb = wandb
        self._run: Any = None

    def start(self, run: Progress) -> None:
        project = os.environ.get("WANDB_PROJECT", "oumi")
        self._run = self._wandb.init(project=project, name=self._plan.run_name, job_type="train")

    def write(self, values: Record, step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class Mlflow(_Tracker):
    """An MLflow run, ended here only if it was begun here."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        try:
            import mlflow
        except ImportError as error:
            raise _missing("training.enable_mlflow") from error
        self._mlflow = mlflow
        self._is_ours = False

    def start(self, run: Progress) -> None:
        if self._mlflow.active_run() is None:
            self._mlflow.start_run(run_name=self._plan.run_name)
            self._is_ours = True

    def write(self, values: Record, step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        if self._is_ours:
            self._mlflow.end_run()


def _named(prefix: str, record: Record) -> Record:
    """Returns the values under names such as `train/loss` and `eval/loss`."""
    return {f"{prefix}/{name.removeprefix('eval_')}": value for name, value in record.items() if name != "step"}


def _missing(key: str) -> ConfigError:
    return ConfigError(f"{key}: its package is not installed: pip install 'oumi[tracking]'")
