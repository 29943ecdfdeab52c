# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: TensorBoard, Weights & Biases, MLflow. Their failures and waits never reach the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from queue import Empty, Full, Queue
from threading import Thread
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.log import logger
from oumi.core.monitoring.console import is_due
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.monitoring.tracker_clients import Client, Mlflow, TensorBoard, Wandb
from oumi.core.plan.parts import Plan
from oumi.core.run import Progress, Sample
from oumi.core.system.redact import redact
from oumi.core.system.signals import is_stop_requested

_MAX_WAITING = 1000
"""Records that wait for a slow tracker; later ones are dropped."""
_FINISH_S, _FINISH_STOPPED_S = 15.0, 3.0
"""How long after its end a run waits for its trackers, and at most one that was asked to stop."""
_CHECK_S = 0.1
"""How often a run that waits looks whether it was asked to stop."""


def build_trackers(plan: Plan) -> list[Sink]:
    """Returns the trackers that the plan enables; raises ConfigError if the package of one is missing."""
    trackers: list[Sink] = []
    if plan.logs.tensorboard_dir is not None:
        trackers.append(TextTracker("TensorBoard", TensorBoard))
    # Imported here, before training begins, so that a missing package fails early.
    if plan.logs.wandb:
        wandb = _import_package("wandb", "training.enable_wandb")
        trackers.append(Tracker("Weights & Biases", lambda run: Wandb(run, wandb)))
    if plan.logs.mlflow:
        mlflow = _import_package("mlflow", "training.enable_mlflow")
        trackers.append(Tracker("MLflow", lambda run: Mlflow(run, mlflow)))
    return trackers


class Tracker(Sink):
    """Passes the steps that the plan reports to a tracker, on a thread of its own.

    Names begin with `train/` or `eval/`. After its first failure the tracker gets the later records all the same.
    """

    def __init__(
        self,
        name: str,
        make_client: Callable[[Progress], Client],
        finish_s: float = _FINISH_S,
        finish_stopped_s: float = _FINISH_STOPPED_S,
    ) -> None:
        """Sets the name for warnings, the tracker, and how long after its end the run waits for it."""
        self._name = name
        self._finish_s, self._finish_stopped_s = finish_s, finish_stopped_s
        self._closed_s = 0.0
        self._make_client = make_client
        self._client: Client | None = None
        self._epoch = 0
        self._records: Queue[tuple[Record | dict[str, str], int] | None] = Queue(_MAX_WAITING)
        # A daemon, since Python waits for all other threads at its end.
        self._thread = Thread(target=self._work, daemon=True)
        self._has_warned = False

    def start(self, run: Progress) -> None:
        self._epoch = int(run.state.epoch)
        if self._succeeds(self._prepare, run):
            self._thread.start()

    def _prepare(self, run: Progress) -> None:
        self._client = self._make_client(run)

    def step(self, run: Progress, record: Record, extra: Sequence[str]) -> None:
        if is_due(run.plan.logs, run, self._epoch):
            self._put((_prefixed("train", record), run.state.step))
        self._epoch = int(run.state.epoch)

    def measured(self, run: Progress, record: Record) -> None:
        self._put((_prefixed("eval", record), run.state.step))

    def close(self) -> None:
        self._closed_s = time.monotonic()
        if self._records.full():  # room for the mark of the end, without which the tracker's run stays open
            with suppress(Empty):
                self._records.get_nowait()
            self._warn("is too slow")
        self._put(None)

    def wait(self) -> None:
        while self._thread.is_alive():
            # Asked each time, since a signal may come while the run waits.
            timeout_s = min(self._finish_s, self._finish_stopped_s) if is_stop_requested() else self._finish_s
            # Counted from the end of the run, so that several trackers share the time.
            left_s = self._closed_s + timeout_s - time.monotonic()
            if left_s <= 0:
                self._warn(f"did not finish within {timeout_s:g} s")
                return
            self._thread.join(min(left_s, _CHECK_S))

    def _put(self, record: tuple[Record | dict[str, str], int] | None) -> None:
        try:
            self._records.put_nowait(record)
        except Full:
            self._warn("is too slow")

    def _work(self) -> None:
        assert self._client is not None, "start makes it"
        if not self._succeeds(self._client.start):
            return
        self._succeeds(self._client.describe)
        while (record := self._records.get()) is not None:
            self._succeeds(self._client.write, *record)
        self._succeeds(self._client.finish)

    def _succeeds(self, call: Callable[..., None], *arguments: Any) -> bool:
        """Returns True if a call of the tracker raised nothing."""
        try:
            call(*arguments)
        # Whatever the package of a tracker raises, also to end the process, must not reach the run.
        except (Exception, SystemExit) as error:
            self._warn(f"failed: {type(error).__name__}: {error}")
            return False
        return True

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = redact(" ".join(reason.split()))  # one line, also of an error with many
            logger.warning("%s %s. The run goes on; metrics.jsonl has all of its values", self._name, text)


class TextTracker(Tracker):
    """A tracker that shows texts, too."""

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        texts = {f"samples/{i}": _as_markdown(sample) for i, sample in enumerate(samples)}
        self._put((texts, run.state.step))


def _as_markdown(sample: Sample) -> str:
    """Returns a sample as TensorBoard shows it: texts as they stand, in blocks of code."""
    parts = {"prompt": sample.prompt, "answer": sample.answer, "reference": sample.reference}
    blocks = (
        f"**{name}**\n\n" + "".join(f"    {line}\n" for line in text.splitlines()) for name, text in parts.items()
    )
    return f"{sample.source}\n\n" + "\n".join(blocks)


def _prefixed(prefix: str, record: Record) -> Record:
    """Returns the values with names such as `train/loss` and `eval/loss`."""
    return {f"{prefix}/{name.removeprefix('eval_')}": value for name, value in record.items() if name != "step"}


def _import_package(name: str, key: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:  # one of another version than its dependencies raises anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
        reason = "is not installed" if is_missing else f"cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(f"{key}: package {name} {reason}: pip install 'oumi[tracking]'") from error
