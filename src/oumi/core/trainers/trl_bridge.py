# SPDX-License-Identifier: Apache-2.0
"""Translates the events of the trainers of TRL and transformers into calls of our callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from oumi.core.batch import Batch
from oumi.core.callbacks.guards import not_finite
from oumi.core.checkpoint.best import (
    best_checkpoint,
    forget_missing_best,
    saves_best,
    track_best,
    without_superseded,
)
from oumi.core.checkpoint.retention import keep_last
from oumi.core.checkpoint.state import write_progress
from oumi.core.checkpoint.store import checkpoint_path, find_checkpoints, seal
from oumi.core.data.pipeline.loader import Loader
from oumi.core.distributed.world import World
from oumi.core.monitoring.efficiency import Efficiency, MicroBatchSize
from oumi.core.plan.choices import is_number
from oumi.core.run import Progress, StepReport, StepSource
from oumi.core.types.example import Source

_COUNTED_BY_TRL = "num_tokens"
"""Tokens of training and evaluation that a process has seen; not those before it, where the run was resumed."""


class AlreadyTrainedError(Exception):
    """Leaves the loop of another trainer, which would take one more step after the last one."""


class EvaluationStoppedError(Exception):
    """Leaves the evaluation of another trainer, which a signal stopped."""


class Bridge(TrainerCallback):
    """Passes the events of another trainer on, and makes all ranks answer them alike."""

    def __init__(
        self, run: Progress, world: World, efficiency: Efficiency | None, source: StepSource, facts: Mapping[str, Any]
    ) -> None:
        self.run = run
        self.world = world
        self.source = source
        """Knows the epochs; a stream also its position."""
        self._position = source.state()
        """After the last complete step; the source itself has the rows of the next one already when that fails."""
        self._efficiency = efficiency
        """The meter of the main rank."""
        self._facts = facts
        self._micro_batches: list[MicroBatchSize] = []
        """Sizes of the current step's micro-batches with rows on this rank."""
        self._losses: list[torch.Tensor] = []
        """Losses of all its micro-batches."""
        self._sources: dict[Source, None] = {}
        """Rows of the current step on this rank."""
        self._num_tokens = self._num_targets = 0
        """Of the current step, over all ranks."""
        self._learning_rate = 0.0
        self.saved_step = run.state.step
        """Step of the last checkpoint."""
        checkpoints = find_checkpoints(run.plan.output_dir) if self.saved_step else []
        self._saved = [path for step, path in checkpoints if step <= self.saved_step]
        self._best_step = run.state.best_step
        """The step of the best evaluation whose checkpoint is saved."""

    def seal(self, step: int) -> None:
        """Completes the checkpoint of a step, which the other trainer has written; on the main rank."""
        checkpoint = checkpoint_path(self.run.plan.output_dir, step)
        write_progress(checkpoint, self.run.state, self._position)
        seal(checkpoint, {**self._facts, "step": step})
        plan = self.run.plan
        saved = without_superseded(self._saved, self.run, self._best_step, self.source)
        self._saved = keep_last([*saved, checkpoint], plan.checkpoints.keep, best_checkpoint(plan, self.run.state))

    def count(self, batch: Batch, num_positions: int, loss: torch.Tensor) -> None:
        """Counts a micro-batch of this rank, with its tokens including padding, and keeps its loss."""
        self._losses.append(loss)
        num_documents = batch.rows[-1]  # without the blank one
        if num_documents:
            size = MicroBatchSize(batch.lengths[:num_documents], batch.num_targets, num_positions)
            self._micro_batches.append(size)
            self._sources |= dict.fromkeys(batch.sources[:num_documents])

    @property
    def num_rows(self) -> int:
        """Returns the rows of the current step, over all ranks, where they are not those of a stream."""
        assert isinstance(self.source, Loader), "refused for streams"
        return len(self.source.rows_of(self.run.state.step))

    def stop_is_signaled(self) -> bool:
        """Returns True on all ranks if any of them was asked to stop."""
        return bool(self.world.agree(self.run.stop_signaled))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.state.step = state.global_step
        forget_missing_best(self.run, self.world)
        self.run.callbacks.train_start(self.run)
        if state.global_step:
            args.eval_on_start = self.run.state.awaits_evaluation

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.run.plan.num_steps or self.run.state.has_converged:
            raise AlreadyTrainedError

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro_batches, self._losses, self._sources = [], [], {}
        if self._efficiency is not None:
            self._efficiency.step_start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        # Read here, since `on_log` comes after the scheduler has set the rate of the next step.
        self._learning_rate = parts["optimizer"].param_groups[0]["lr"]
        self._check_and_count(parts["model"], args.fp16)
        if self._efficiency is not None:
            self._efficiency.before_update(self._micro_batches)

    def _check_and_count(self, model: torch.nn.Module, is_scaled: bool) -> None:
        """Sums over the ranks, and raises NotFiniteError on all of them if the loss or a gradient is not finite."""
        # With fp16, the scaler skips steps that overflow. DeepSpeed keeps the gradients to itself.
        gradients = [] if is_scaled else [weight.grad for weight in model.parameters() if weight.grad is not None]
        shards = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        num_broken = sum(not bool(torch.isfinite(shard).all()) for shard in shards)
        # The trainer multiplies its loss by the number of ranks, since they average their gradients.
        loss = sum(float(loss) for loss in self._losses) / self.world.size
        own = torch.tensor(
            [
                sum(sum(micro_batch.lengths) for micro_batch in self._micro_batches),
                sum(micro_batch.num_targets for micro_batch in self._micro_batches),
                loss,
                num_broken,
            ],
            dtype=torch.float64,
        )
        num_tokens, num_targets, loss, num_broken = self.world.sum(own).tolist()
        self._num_tokens, self._num_targets = int(num_tokens), int(num_targets)
        if not math.isfinite(loss):
            raise not_finite(self.run, f"the loss is {loss}", self._rows_of_step())
        if num_broken:
            raise not_finite(self.run, "a gradient is not a finite number", self._rows_of_step())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._position = self.source.state()
        every_steps = self.run.plan.evaluation.every_steps
        if every_steps and state.global_step % every_steps:
            control.should_evaluate = False  # transformers also evaluates after the last step, whichever it is
        self.run.stop_requested |= self.stop_is_signaled()
        if self.run.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = dict(logs or {})
        if "loss" not in logs:  # the summary at the end of training, or an evaluation
            return
        now = self.run.state
        now.step, now.epoch = state.global_step, self.source.epoch(state.global_step)
        now.num_tokens += self._num_tokens
        now.num_targets += self._num_targets
        reported = {"loss", "grad_norm", "learning_rate", "epoch", "step", _COUNTED_BY_TRL}
        report = StepReport(
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm", float("nan")),
            learning_rate=self._learning_rate,
            num_targets=self._num_targets,
            num_tokens=self._num_tokens,
            extra={name: value for name, value in logs.items() if name not in reported and is_number(value)},
        )
        self.run.callbacks.step_end(self.run, report)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        self.run.state.awaits_evaluation = False
        unread = {"epoch", f"eval_{_COUNTED_BY_TRL}"}
        values = {k: v for k, v in (metrics or {}).items() if is_number(v) and k not in unread}
        self.run.callbacks.measured(self.run, {**values, **track_best(self.run, values)})
        control.should_save |= saves_best(self.run)
        control.should_training_stop |= self.run.state.has_converged

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_step = state.global_step
        self._best_step = self.run.state.best_step
        self.run.callbacks.saved(self.run, checkpoint_path(self.run.plan.output_dir, state.global_step))
        if self.stop_is_signaled():  # the signal finds its checkpoint already saved
            self.run.stop_requested = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.callbacks.train_end(self.run)

    def _rows_of_step(self) -> list[Source]:
        """Returns the rows of the current step, of all ranks; collective."""
        return list(chain.from_iterable(self.world.gather(list(self._sources))))
