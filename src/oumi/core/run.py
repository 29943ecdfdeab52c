# SPDX-License-Identifier: Apache-2.0
"""A run while it runs: its parts, its progress, and who is told of it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from oumi.core.batch import Batch
from oumi.core.distributed.parameters import Parameters
from oumi.core.distributed.world import World
from oumi.core.plan.parts import Plan
from oumi.core.system.signals import is_stop_requested

if TYPE_CHECKING:
    from oumi.core.methods.method import Method


@dataclass
class TrainState:
    """How far a run has come: all that a checkpoint must count."""

    step: int = 0
    """Optimizer steps taken."""
    num_tokens: int = 0
    """Tokens that went through the model."""
    num_targets: int = 0
    """Tokens that were trained."""
    epoch: float = 0.0
    parts: int = 1
    """Into how many parts a micro-batch is cut since memory ran out; kept, so that a resumed run adds as before."""
    best_value: float | None = None
    """The metric of the best evaluation, None before the first one, or if the plan does not look for it."""
    best_step: int = 0
    """The step of the best evaluation."""
    num_worse: int = 0
    """Evaluations since the last one that was an improvement for early stopping."""
    has_converged: bool = False
    """Early stopping has ended the run."""
    awaits_evaluation: bool = False
    """The evaluation of this step was stopped by a signal; a resumed run begins with it."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step."""

    loss: float
    """Mean over all terms of the step."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_targets: int
    """Tokens that were trained."""
    num_tokens: int
    extra: Mapping[str, float] = field(default_factory=dict)
    """What the method measures beside, as means; or what another trainer logs."""


@dataclass(frozen=True)
class Sample:
    """What the model answered to a row of the validation set."""

    source: str
    """Place of the row."""
    prompt: str
    reference: str
    """What the row has there."""
    answer: str


@dataclass(eq=False, kw_only=True)
class Progress:
    """What every trainer can show of a run: its plan, its state and its listeners."""

    plan: Plan
    callbacks: Callbacks
    state: TrainState = field(default_factory=TrainState)
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of everything that was measured."""
    stop_requested: bool = False
    """The run ends after this step, with a checkpoint."""

    @property
    def is_complete(self) -> bool:
        """Returns True after the last step, or after early stopping, once the evaluation of the step is done."""
        is_last = self.state.step >= self.plan.num_steps or self.state.has_converged
        return is_last and not self.state.awaits_evaluation

    @property
    def stop_signaled(self) -> bool:
        """Returns True if this process was asked to stop; the step asks all ranks, and then requests it of the run."""
        return is_stop_requested()


@dataclass(eq=False, kw_only=True)
class Run(Progress):
    """The parts of a run of our own loop."""

    world: World
    model: torch.nn.Module
    method: Method
    """What is minimized."""
    parameters: Parameters
    """What the optimizer updates."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    """Passes everything through unless float16 is used."""
    loader: StepSource

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which matrix products take the plan's mixed precision."""
        return autocast_of(self.plan, self.world.device)


def autocast_of(plan: Plan, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which matrix products on a device take the mixed precision of a plan."""
    dtype = plan.precision.autocast
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))


class StepSource(Protocol):
    """Where the micro-batches of each step come from."""

    def from_step(self, step: int) -> Generator[list[Batch], None, None]:
        """Yields the micro-batches of step `step` (from 0), then of those after it."""
        ...

    def epoch(self, step: int) -> float:
        """Returns how many epochs lie behind after `step` steps."""
        ...

    def ends_epoch(self, step: int) -> bool:
        """Returns True if an epoch is over after `step` steps."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns what it takes, beside the number of steps, to go on after the step that was given last."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken."""
        ...


class Callback:
    """Something that happens around steps. Override what you need."""

    def train_start(self, run: Progress) -> None:
        """Before the first step; `run.state` says where a resumed run goes on."""

    def step_start(self, run: Run) -> None:
        """When the rows of a step are there, before anything is computed."""

    def before_update(self, run: Run, report: StepReport, micro_batches: list[Batch]) -> None:
        """After the gradients of a step are known, before any weight moves."""

    def step_end(self, run: Progress, report: StepReport) -> None:
        """After an optimizer step; `run.state.step` counts it."""

    def measured(self, run: Progress, metrics: Mapping[str, float]) -> None:
        """When something other than a step was measured, such as the validation loss."""

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        """When rows of the validation set were answered."""

    def saved(self, run: Progress, checkpoint: Path) -> None:
        """When a checkpoint stands complete on disk."""

    def train_end(self, run: Progress) -> None:
        """After the last step."""

    def close(self) -> None:
        """Always, also when training failed: release what is held."""

    def wait(self) -> None:
        """Always and last, after the model is written: wait, for a bounded time, for what is still under way."""


class Callbacks(Callback):
    """Tells several callbacks, in order."""

    def __init__(self, callbacks: list[Callback]) -> None:
        self.all = callbacks

    def train_start(self, run: Progress) -> None:
        for callback in self.all:
            callback.train_start(run)

    def step_start(self, run: Run) -> None:
        for callback in self.all:
            callback.step_start(run)

    def before_update(self, run: Run, report: StepReport, micro_batches: list[Batch]) -> None:
        for callback in self.all:
            callback.before_update(run, report, micro_batches)

    def step_end(self, run: Progress, report: StepReport) -> None:
        for callback in self.all:
            callback.step_end(run, report)

    def measured(self, run: Progress, metrics: Mapping[str, float]) -> None:
        run.metrics.update(metrics)
        for callback in self.all:
            callback.measured(run, metrics)

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        for callback in self.all:
            callback.sampled(run, samples)

    def saved(self, run: Progress, checkpoint: Path) -> None:
        for callback in self.all:
            callback.saved(run, checkpoint)

    def train_end(self, run: Progress) -> None:
        for callback in self.all:
            callback.train_end(run)

    def close(self) -> None:
        for callback in self.all:
            callback.close()

    def wait(self) -> None:
        for callback in self.all:
            callback.wait()
