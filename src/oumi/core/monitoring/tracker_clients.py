# SPDX-License-Identifier: Apache-2.0
"""The calls of the packages of experiment trackers: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

from oumi.core.checkpoint.identity import read_identity
from oumi.core.configs.loading import to_plain
from oumi.core.monitoring.efficiency import Record
from oumi.core.run import Progress
from oumi.core.system.redact import redact

_MAX_PARAMS = 100
"""Parameters that MLflow takes in one call."""
_MAX_PARAM_LENGTH = 500
_RUN_TAG = "oumi.run_id"
"""The tag of an MLflow run that holds the id of our run, which goes on in whichever directory it is resumed."""


class Client(Protocol):
    """The calls of a tracker's package, all on one thread. They may raise anything, or take for ever."""

    def start(self) -> None:
        """Opens the run of the tracker."""

    def describe(self) -> None:
        """Sends what is known before the first step."""

    def write(self, values: Record, step: int) -> None:
        """Sends the named values of a step."""

    def finish(self) -> None:
        """Closes the run of the tracker."""


class TensorBoard:
    """Writes event files to `tensorboard/`."""

    _writer: Any = None

    def __init__(self, run: Progress) -> None:
        self._directory = run.plan.logs.tensorboard_dir
        # Events of later steps are of a run that this one resumes or replaces, and would be shown as well.
        self._purge_step = run.state.step + 1

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)

    def describe(self) -> None:
        pass

    def write(self, values: Record | dict[str, str], step: int) -> None:
        for name, value in values.items():
            (self._writer.add_text if isinstance(value, str) else self._writer.add_scalar)(name, value, step)
        self._writer.flush()  # by default, SummaryWriter flushes only every two minutes

    def finish(self) -> None:
        self._writer.close()


class Wandb:
    """Logs to a Weights & Biases run in the project WANDB_PROJECT, `oumi` by default; a resumed run continues its own.

    Weights & Biases itself ignores steps that it already has.
    """

    _run: Any = None

    def __init__(self, run: Progress, package: Any) -> None:
        self._package = package
        self._run_name = run.plan.run_name
        self._run_id = _run_id(run)
        self._config = redact(to_plain(run.plan.config))
        self._is_ours = getattr(package, "run", None) is None

    def start(self) -> None:
        if not self._is_ours:  # the program that called us has a run, to which it may log more
            self._run = self._package.run
            return
        self._run = self._package.init(
            # Passed explicitly, since the default of wandb without the variable is "uncategorized".
            project=os.environ.get("WANDB_PROJECT", "oumi"),
            name=self._run_name,
            job_type="train",
            id=os.environ.get("WANDB_RUN_ID") or self._run_id,
            resume=os.environ.get("WANDB_RESUME") or "allow",
            config=self._config,
        )

    def describe(self) -> None:
        if not self._is_ours:
            self._run.config.update(self._config, allow_val_change=True)

    def write(self, values: Record, step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        if self._is_ours:
            self._run.finish()


class Mlflow:
    """Logs to the active MLflow run, to that of the run that is resumed, or to a new one."""

    def __init__(self, run: Progress, package: Any) -> None:
        self._package = package
        self._run_name = run.plan.run_name
        self._config = redact(to_plain(run.plan.config))
        self._run_id = _run_id(run)
        active = package.active_run()  # asked here, since each thread may have its own
        self._active_id = active.info.run_id if active is not None else None
        self._resumed_id: str | None = None
        self._last_steps: dict[str, int] = {}
        """The last step that a resumed run already has, for `train` and `eval`."""

    def start(self) -> None:
        if self._package.active_run() is not None:  # older versions have one for all threads
            return
        if self._active_id is None:
            self._resumed_id = self._find_run_id()
        if run_id := self._active_id or self._resumed_id:
            self._package.start_run(run_id=run_id)
        else:
            self._package.start_run(run_name=self._run_name, tags={_RUN_TAG: self._run_id})

    def describe(self) -> None:
        if self._resumed_id is not None:
            client = self._package.MlflowClient()
            for kind in ("train", "eval"):
                history = client.get_metric_history(self._resumed_id, f"{kind}/loss")
                self._last_steps[kind] = max((metric.step for metric in history), default=0)
            return
        params = list(_flat(self._config))
        for i in range(0, len(params), _MAX_PARAMS):
            self._package.log_params(dict(params[i : i + _MAX_PARAMS]))

    def write(self, values: Record, step: int) -> None:
        kind = next(iter(values)).partition("/")[0]
        if step > self._last_steps.get(kind, 0):  # MLflow would hold repeated steps twice
            self._package.log_metrics(values, step=step)

    def finish(self) -> None:
        if self._active_id is None:  # the owner of an active run may log more to it
            self._package.end_run()

    def _find_run_id(self) -> str | None:
        """Returns the id that MLflow, which chooses it, gave to our run in this experiment, None if it has none yet."""
        is_ours = f"tags.`{_RUN_TAG}` = '{self._run_id}'"
        runs = self._package.search_runs(filter_string=is_ours, max_results=1, output_format="list")
        return str(runs[0].info.run_id) if runs else None


def _run_id(run: Progress) -> str:
    """Returns the id of a run, which it keeps when it is resumed."""
    identity = read_identity(run.plan.output_dir)
    assert identity is not None, "claim has written it"
    return identity.run_id


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields the values of nested dicts and lists by dotted keys, as text that MLflow takes."""
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)[:_MAX_PARAM_LENGTH]
