# SPDX-License-Identifier: Apache-2.0
"""A tracker that fails or hangs never changes a run; a resumed run continues its run of the tracker."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from oumi.core.errors import ConfigError, PreemptedError
from oumi.core.monitoring.trackers import Tracker
from oumi.core.system.signals import hold_signals, signals_answered
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build, losses, tiny_config

PACKAGE = """
import json, os, signal, time, types

runs, params, failure, stop_at, awaited = {}, {}, "", 0, None
_active = None

def _fail(place):
    if failure == place:
        raise ConnectionError("no\\nroute")

def _log(run_id, values, step):
    _fail("log")
    if failure == "third" and step == 3:
        raise ConnectionError("timed out")
    runs[run_id] += [(name, step) for name in values]
    if step == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
"""
WANDB = """
run = None

class Run:
    def __init__(self, id): self.id = id
    def log(self, values, step=None): _log(self.id, values, step)
    def finish(self):
        _fail("finish")
        deadline = time.monotonic() + 3
        while awaited and not awaited.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        global finished_with_model
        finished_with_model = awaited and awaited.exists()

def init(id, config, resume, **rest):
    _fail("start")
    assert id not in runs or resume == "allow"
    runs.setdefault(id, [])
    params.update(config["training"])
    return Run(id)
"""
MLFLOW = """
def active_run(): return _active

tagged = {}

def start_run(run_id=None, run_name=None, tags=None):
    global _active
    _fail("start")
    _active = types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or f"theirs-{len(runs)}"))
    runs.setdefault(_active.info.run_id, [])
    for name, value in (tags or {}).items():
        tagged[f"tags.`{name}` = '{value}'"] = _active

def search_runs(filter_string, max_results, output_format):
    assert output_format == "list"
    return [tagged[filter_string]] if filter_string in tagged else []

def end_run():
    global _active
    _fail("finish")
    _active = None

def log_params(values):
    _fail("params")
    assert len(values) <= 100 and not any("[" in name for name in values)
    params.update({name.removeprefix("training."): value for name, value in values.items()})

def log_metrics(values, step=None): _log(_active.info.run_id, values, step)

class MlflowClient:
    def get_metric_history(self, run_id, key):
        return [types.SimpleNamespace(step=step) for name, step in runs[run_id] if name == key]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Returns a stand-in for the package of a tracker, which is not installed."""
    folder = tmp_path / "packages"
    folder.mkdir()
    name = request.param
    (folder / f"{name}.py").write_text(PACKAGE + {"wandb": WANDB, "mlflow": MLFLOW}[name])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield __import__(name)
    sys.modules.pop(name, None)


def warnings_of(output_dir: Path) -> list[str]:
    log = (output_dir / "logs" / "rank_0000.log").read_text()
    return [line for line in log.splitlines() if " WARNING " in line]


@pytest.mark.sample(4)
@pytest.mark.parametrize("failure", ["start", "log", "third", "finish"])
@pytest.mark.parametrize("package", ["wandb", "mlflow"], indirect=True)
def test_a_tracker_that_fails_never_changes_the_run(tmp_path: Path, package: Any, failure: str) -> None:
    package.failure = failure
    config = tiny_config(tmp_path, max_steps=4, logging_steps=1)
    setattr(config.training, f"enable_{package.__name__}", True)
    assert train(config).steps == 4
    assert len(losses(tmp_path / "out")) == 4
    (warning,) = warnings_of(tmp_path / "out")
    assert "failed: ConnectionError: " in warning
    assert (tmp_path / "out" / "model.safetensors").exists()
    if failure == "third":
        (points,) = package.runs.values()
        assert [step for name, step in points if name == "train/loss"] == [1, 2, 4]


class Hanging:
    """A tracker that never answers."""

    def __init__(self, place: str) -> None:
        self.place = place

    def _wait(self, place: str) -> None:
        if place == self.place:
            threading.Event().wait()

    @classmethod
    def tracker(cls, place: str, finish_s: float, finish_stopped_s: float) -> Tracker:
        return Tracker("Tracker", lambda _: cls(place), finish_s, finish_stopped_s)

    def start(self) -> None:
        self._wait("start")

    def describe(self) -> None:
        pass

    def write(self, values: object, step: int) -> None:
        self._wait("write")

    def finish(self) -> None:
        self._wait("finish")


@pytest.mark.parametrize("place", ["start", "write", "finish"])
def test_a_tracker_that_hangs_holds_up_no_step_and_the_end_for_a_bounded_time(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("oumi"), "propagate", True)
    run = build(tiny_config(tmp_path, logging_steps=1), NativeTrainer).run
    tracker = Hanging.tracker(place, 0.2, 0.2)
    began = time.monotonic()
    tracker.start(run)
    for step in range(3000):
        run.state.step = step
        tracker.step(run, {"loss": 1.0}, ())
    tracker.close()
    tracker.wait()
    assert time.monotonic() - began < 10
    # A set, since the logger of a process that runs many tests may propagate to more than one handler.
    (warning,) = {message for message in caplog.messages if message.startswith("Tracker ")}
    assert warning.startswith(("Tracker is too slow. The run goes on", "Tracker did not finish within 0.2 s. The run"))


@pytest.mark.parametrize("signal_after_s", [None, 0.2])
def test_trackers_that_hang_share_one_wait_which_a_signal_shortens(
    tmp_path: Path, signal_after_s: float | None
) -> None:
    run = build(tiny_config(tmp_path, logging_steps=1), NativeTrainer).run
    finish_s, expected_s = (1.0, 1.0) if signal_after_s is None else (30.0, 0.5)
    trackers = [Hanging.tracker("start", finish_s, 0.5) for _ in range(3)]
    with signals_answered():
        hold_signals()  # as after the last step
        for tracker in trackers:
            tracker.start(run)
        began = time.monotonic()
        for tracker in trackers:
            tracker.close()
        if signal_after_s is not None:
            threading.Timer(signal_after_s, os.kill, (os.getpid(), signal.SIGTERM)).start()
        for tracker in trackers:
            tracker.wait()
    assert expected_s <= time.monotonic() - began < expected_s + 0.4


def test_a_tracker_whose_queue_is_full_still_finishes(tmp_path: Path) -> None:
    class Slow(Hanging):
        """A tracker that takes nothing until it is released."""

        released, finished = threading.Event(), threading.Event()

        def write(self, values: object, step: int) -> None:
            self.released.wait()

        def finish(self) -> None:
            self.finished.set()

    run = build(tiny_config(tmp_path, logging_steps=1), NativeTrainer).run
    tracker = Slow.tracker("", 10.0, 10.0)
    tracker.start(run)
    for step in range(3000):
        run.state.step = step
        tracker.step(run, {"loss": 1.0}, ())
    tracker.close()
    Slow.released.set()
    tracker.wait()
    assert Slow.finished.is_set()


@pytest.mark.parametrize("trainer", ["OUMI", pytest.param("HF", marks=pytest.mark.slow)])
@pytest.mark.parametrize("package", ["wandb"], indirect=True)
def test_the_model_does_not_wait_for_trackers(tmp_path: Path, package: Any, trainer: str) -> None:
    package.awaited = tmp_path / "out" / "model.safetensors"
    train(tiny_config(tmp_path, trainer_type=trainer, max_steps=1, logging_steps=1, enable_wandb=True))
    assert ("train/loss", 1) in next(iter(package.runs.values()))
    assert package.finished_with_model


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise TypeError('old')", "cannot be imported: TypeError: old"), ("import not_there", "cannot be imported")],
)
def test_a_package_that_cannot_be_imported_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=rf"training\.enable_wandb: package wandb {reason}"):
        train(tiny_config(tmp_path, max_steps=1, enable_wandb=True))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("package", ["wandb", "mlflow"], indirect=True)
def test_a_run_continues_its_run_of_the_tracker_in_another_directory(tmp_path: Path, package: Any) -> None:
    shape = {"max_steps": 3, "logging_steps": 1, f"enable_{package.__name__}": True}
    train(tiny_config(tmp_path, **shape, save_steps=2))
    named = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-2"), "output_dir": str(tmp_path / "two")}
    train(tiny_config(tmp_path, **shape, **named))
    assert len(package.runs) == 1
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "three")))
    assert len(package.runs) == 2


@pytest.mark.parametrize("package", ["wandb", "mlflow"], indirect=True)
def test_a_resumed_run_continues_its_run_of_the_tracker_and_repeats_no_point(tmp_path: Path, package: Any) -> None:
    config = tiny_config(tmp_path, max_steps=8, logging_steps=1, save_steps=2, eval_strategy="steps", eval_steps=2)
    config.data.validation.datasets = list(config.data.train.datasets)
    setattr(config.training, f"enable_{package.__name__}", True)
    config.training.try_resume_from_last_checkpoint = True
    package.stop_at = 3
    with pytest.raises(PreemptedError):
        train(config)
    (checkpoint, *older) = sorted((tmp_path / "out").glob("checkpoint-*"), reverse=True)
    assert older
    (checkpoint / "MANIFEST.json").unlink()  # as after a kill, the steps after the older checkpoint are repeated
    package.stop_at = 0
    train(config)
    (points,) = package.runs.values()
    assert package.params["max_steps"] in (8, "8")
    if package.__name__ == "mlflow":  # the other one ignores repeated steps by itself
        assert [step for name, step in points if name == "train/loss"] == list(range(1, 9))
        assert [step for name, step in points if name == "eval/loss"] == [2, 4, 6, 8]
    else:
        assert {step for name, step in points if name == "train/loss"} == set(range(1, 9))
