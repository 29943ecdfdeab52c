# SPDX-License-Identifier: Apache-2.0
"""An adapter for the trainers of TRL and transformers: their loop with our rows, order of rows and callbacks."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback

from oumi.core.batch import IGNORED
from oumi.core.callbacks.guards import SignalGuard, not_finite, save_if_possible, stopped_early
from oumi.core.checkpoint.state import read_progress, write_progress
from oumi.core.checkpoint.store import checkpoint_path, seal, storage_errors
from oumi.core.configs.base import types_in
from oumi.core.configs.tree import scalar
from oumi.core.data.pipeline.loader import Loader
from oumi.core.data.pipeline.mixture import Mixture, permute
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.world import World, seed_everything
from oumi.core.errors import ConfigError, NotFiniteError, OumiError, did_you_mean
from oumi.core.log import logger
from oumi.core.models.acceleration.liger import check_liger
from oumi.core.models.adapters import saved_size
from oumi.core.models.attention.rope import separate_rows
from oumi.core.models.build import build_model, router_loss_coefficient
from oumi.core.monitoring.build import build_efficiency, build_reporting, write_model_summary
from oumi.core.monitoring.efficiency import Efficiency, MicroBatchSize
from oumi.core.optim.optimizers import decayed_names
from oumi.core.optim.schedules import build_schedule
from oumi.core.plan.choices import SCHEDULES, is_number
from oumi.core.plan.disk import with_saved_size
from oumi.core.plan.parts import Plan
from oumi.core.run import Callbacks, Progress, StepReport
from oumi.core.system.signals import only_parent_ends, signals_held
from oumi.core.trainers.export import Exporter
from oumi.core.trainers.resume import ResumePoint
from oumi.core.trainers.trl_methods import METHODS, NEWER_NAMES, arguments
from oumi.core.types.example import Source


class TrlTrainer:
    """Runs a trainer of TRL or transformers with the settings of the plan."""

    def __init__(self, run: Progress, inner: Any, bridge: Bridge, exporter: Exporter, checkpoint: Path | None) -> None:
        self.run = run
        self.inner = inner
        self._bridge = bridge
        self._exporter = exporter
        self._checkpoint = checkpoint

    @classmethod
    def build(cls, plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> TrlTrainer:
        """Loads the model, and creates the other trainer with it and our rows.

        Raises:
            ConfigError: The other trainer rejects an argument, or lacks one of `training.trainer_kwargs`.
        """
        seed_everything(plan.seed, plan.deterministic, plan.device)
        method = METHODS[plan.trainer]
        with _translated_errors(plan):
            settings = _checked(_load(method.config), arguments(plan))
        model = build_model(plan, torch.device("cpu"))  # the other trainer moves it to its device
        exporter = Exporter(plan, model, rows.preprocessor)
        rows.check_vocabulary(model)
        write_model_summary(plan, model)
        plan = with_saved_size(plan, saved_size(model, plan.save_mode))
        if plan.speed.liger:
            check_liger(model)
        separate_rows(model)
        # On a GPU, TRL also computes the logits of trained positions only.
        efficiency = build_efficiency(plan, model, has_full_head=plan.trainer == "HF" or plan.device == "cpu")
        run = Progress(plan=plan, callbacks=Callbacks([SignalGuard(), build_reporting(plan, efficiency)]))
        if start.checkpoint is not None:
            run.state = read_progress(start.checkpoint, start.step)
        bridge = Bridge(run, efficiency, rows.train, start.facts(plan, rows.fingerprint))
        with _translated_errors(plan):
            trainer = _adapted(_load(method.trainer), plan, bridge, exporter)(
                model=model,
                args=settings,
                train_dataset=_as_dataset(rows.train),
                eval_dataset=_as_dataset(rows.validation) if len(rows.validation) else None,
                data_collator=DataCollatorForSeq2Seq(
                    rows.preprocessor.tokenizer,
                    label_pad_token_id=IGNORED,
                    pad_to_multiple_of=plan.config.data.train.collator_kwargs.get("pad_to_multiple_of"),
                ),
                processing_class=rows.preprocessor.tokenizer,
                callbacks=[bridge],
            )
            # Created now, so that an unknown optimizer or a missing package is reported before training.
            trainer.create_optimizer()
        if coefficient := router_loss_coefficient(model):  # now, since the trainer may have set it
            logger.warning(
                "the loss includes the router's auxiliary loss, which balances experts, times router_aux_loss_coef %g",
                coefficient,
            )
        trainer.remove_callback(PrinterCallback)  # our console shows the steps
        return cls(run, trainer, bridge, exporter, start.checkpoint)

    def train(self) -> None:
        """Runs every step of the plan; raises PreemptedError if the run was stopped before the last one."""
        run = self.run
        try:
            self.inner.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        except AlreadyTrainedError:
            run.callbacks.train_end(run)
        except EvaluationStoppedError:
            run.stop_requested = run.state.awaits_evaluation = True
            self._save_last_step()
        except NotFiniteError:
            save_if_possible(self._save_last_step)
            raise
        finally:
            run.callbacks.close()
        if run.stop_requested and (run.state.step < run.plan.num_steps or run.state.awaits_evaluation):
            raise stopped_early(run)

    def _save_last_step(self) -> None:
        """Writes the checkpoint of the last complete step, unless there is one."""
        if self.inner.state.global_step > self._bridge.saved_step:
            self.inner._save_checkpoint(self.inner.model, None)
            self._bridge.on_save(self.inner.args, self.inner.state, self.inner.control)

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer."""
        self._exporter.publish(directory)


class AlreadyTrainedError(Exception):
    """Leaves the loop of another trainer, which would take one more step after the last one."""


class EvaluationStoppedError(Exception):
    """Leaves the evaluation of another trainer, which a signal stopped."""


class Bridge(TrainerCallback):
    """Translates the events of another trainer into calls of our callbacks."""

    def __init__(self, run: Progress, efficiency: Efficiency, rows: Mixture, facts: Mapping[str, Any]) -> None:
        self.run = run
        self._efficiency = efficiency
        self._facts = facts
        self._rows = rows
        self._order = Loader(rows, run.plan.steps, run.plan.data.seed)
        self._micro_batches: list[MicroBatchSize] = []
        """Sizes of the current step's micro-batches."""
        self._learning_rate = 0.0
        self.saved_step = run.state.step
        """Step of the last checkpoint."""

    def seal(self, step: int) -> None:
        """Completes the checkpoint of a step, which the other trainer has written."""
        checkpoint = checkpoint_path(self.run.plan.output_dir, step)
        write_progress(checkpoint, self.run.state)
        seal(checkpoint, {**self._facts, "step": step})
        self.saved_step = step

    def count(self, inputs: Mapping[str, Any], loss: torch.Tensor) -> None:
        """Counts a micro-batch; raises NotFiniteError, before the update of its step, if the loss is not finite."""
        mask = inputs["attention_mask"]
        num_targets = int((inputs["labels"] != IGNORED).sum())
        self._micro_batches.append(MicroBatchSize(tuple(mask.sum(1).tolist()), num_targets, mask.numel()))
        if not torch.isfinite(loss):
            raise not_finite(self.run, f"the loss is {loss.item()}", self._rows_of_step())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.state.step = state.global_step
        self.run.callbacks.train_start(self.run)
        if state.global_step:
            args.eval_on_start = self.run.state.awaits_evaluation

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self.run.plan.num_steps:
            raise AlreadyTrainedError

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro_batches = []
        self._efficiency.step_start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        # Read here, since `on_log` comes after the scheduler has set the rate of the next step.
        self._learning_rate = parts["optimizer"].param_groups[0]["lr"]
        # With fp16, the scaler skips steps that overflow.
        gradients = (weight.grad for weight in parts["model"].parameters() if weight.grad is not None)
        if not args.fp16 and not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise not_finite(self.run, "a gradient is not a finite number", self._rows_of_step())
        self._efficiency.before_update(self._micro_batches)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every_steps = self.run.plan.evaluation.every_steps
        if every_steps and state.global_step % every_steps:
            control.should_evaluate = False  # transformers also evaluates after the last step, whichever it is
        self.run.stop_requested |= self.run.stop_signaled
        if self.run.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = dict(logs or {})
        if "loss" not in logs:  # the summary at the end of training, or an evaluation
            return
        now = self.run.state
        now.step, now.epoch = state.global_step, float(state.epoch or 0.0)
        num_tokens = sum(sum(micro_batch.lengths) for micro_batch in self._micro_batches)
        num_targets = sum(micro_batch.num_targets for micro_batch in self._micro_batches)
        now.num_tokens += num_tokens
        now.num_targets += num_targets
        reported = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
        report = StepReport(
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm", float("nan")),
            learning_rate=self._learning_rate,
            num_targets=num_targets,
            num_tokens=num_tokens,
            extra={name: value for name, value in logs.items() if name not in reported and is_number(value)},
        )
        self.run.callbacks.step_end(self.run, report)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        self.run.state.awaits_evaluation = False
        self.run.callbacks.measured(
            self.run, {k: v for k, v in (metrics or {}).items() if is_number(v) and k != "epoch"}
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.callbacks.saved(self.run, checkpoint_path(self.run.plan.output_dir, state.global_step))
        if self.run.stop_signaled:  # the signal finds its checkpoint already saved
            self.run.stop_requested = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.callbacks.train_end(self.run)

    def _rows_of_step(self) -> list[Source]:
        """Returns the rows of the current step."""
        return [self._rows[i].source for i in self._order.rows_of(self.run.state.step)]


class EpochOrder(torch.utils.data.Sampler[int]):
    """Samples the rows in the same order as the native trainer."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the order; called by the trainer."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        yield from permute(np.arange(self._length), self._length, self._seed, self._epoch).tolist()


def _adapted(trainer_class: Any, plan: Plan, bridge: Bridge, exporter: Exporter) -> Any:
    """Returns a subclass with our order of rows, schedule, guards, files, and a validation loss averaged over terms."""
    # Cached, since it reads all validation rows.
    terms_per_row = functools.cache(lambda trainer: _terms_per_row(trainer.eval_dataset["labels"]))

    class AdaptedTrainer(trainer_class):  # type: ignore[misc]  # the plan decides the class
        def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
            return EpochOrder(len(self.train_dataset), plan.data.seed)

        def _get_dataloader(self, *arguments: Any, **named: Any) -> Any:
            loader = super()._get_dataloader(*arguments, **named)
            torch_loader = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
            torch_loader.worker_init_fn = functools.partial(_init_worker, torch_loader.worker_init_fn)
            return loader

        def get_decay_parameter_names(self, model: Any) -> list[str]:
            return sorted(decayed_names(model))

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if plan.schedule.name not in SCHEDULES:
                return super().create_scheduler(num_training_steps, optimizer)
            if self.lr_scheduler is None:
                self.lr_scheduler = build_schedule(optimizer or self.optimizer, plan.schedule, num_training_steps)
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
            bridge.count(inputs, loss)
            return loss

        def prediction_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if bridge.run.stop_signaled:
                raise EvaluationStoppedError
            loss, *outputs = super().prediction_step(model, inputs, *rest, **named)
            # transformers averages the losses of batches weighted by rows. This factor, the batch's terms per row over
            # those of all rows, makes it a mean over terms.
            return loss * (_terms_per_row(inputs["labels"]) / terms_per_row(self)), *outputs

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            checkpoint = checkpoint_path(plan.output_dir, self.state.global_step)
            with signals_held(), storage_errors(checkpoint):
                try:
                    super()._save_checkpoint(model, trial)
                    bridge.seal(self.state.global_step)
                except (OSError, RuntimeError, SafetensorError):  # a part of it would only take up a full disk
                    shutil.rmtree(checkpoint, ignore_errors=True)
                    raise

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            exporter.write(Path(output_dir or plan.output_dir))

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """Writes nothing: the card of TRL would replace a README of the user."""

    return AdaptedTrainer


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Initializes a worker of a DataLoader: the step at which a signal stops the run still needs its rows."""
    only_parent_ends()
    if init is not None:
        init(worker)


def _terms_per_row(labels: Iterable[Any]) -> float:
    """Returns the mean number of trained tokens per row of labels."""
    counts = [int((torch.as_tensor(row) != IGNORED).sum()) for row in labels]
    return sum(counts) / len(counts)


@contextmanager
def _translated_errors(plan: Plan) -> Iterator[None]:
    """Converts errors of TRL and transformers about their arguments to ConfigError, with the original message."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if isinstance(error, OumiError):  # our ConfigError is a ValueError, and already has its key
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"training: {plan.trainer} rejects the config: {reason}") from error


def _load(path: str) -> Any:
    """Returns the class of a path such as `trl:SFTTrainer`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _checked(config_class: Any, values: dict[str, Any]) -> Any:
    """Returns the config of another trainer; raises ConfigError for an argument that it does not have."""
    # The names of arguments depend on the installed version of transformers.
    fields = {field.name for field in dataclasses.fields(config_class)}
    newer = {old: new for old, new in NEWER_NAMES.items() if new in fields}
    values = {newer.get(name, name): value for name, value in values.items()}
    types = get_type_hints(config_class)
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(
                f"training.trainer_kwargs.{name}: {config_class.__name__} has no such argument"
                f"{did_you_mean(name, fields)}"
            )
        # Text of an environment variable gets the type of its field, which the config class does not check.
        expected = set(types_in(types[name]))
        if isinstance(value, str) and expected <= {int, float, bool, NoneType}:
            values[name] = scalar(value)
            if isinstance(values[name], str):
                wanted = " or ".join(sorted(kind.__name__ for kind in expected - {NoneType}))
                raise ConfigError(f"training.trainer_kwargs.{name}: got {value!r}, expected {wanted}")
    return config_class(**values)


def _as_dataset(rows: Mixture) -> Dataset:
    """Returns the rows with token ids and labels, which are IGNORED for tokens that are not trained."""
    examples = [example for i in range(len(rows)) for example in rows.group(i)]
    labels = [np.where(example.is_target, example.tokens, IGNORED) for example in examples]
    for example in labels:
        example[0] = IGNORED  # nothing predicts the first token
    return Dataset.from_dict({"input_ids": [example.tokens for example in examples], "labels": labels})
