# SPDX-License-Identifier: Apache-2.0
"""One adapter for the trainers of TRL and transformers: our rows, our order, our callbacks, their loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback

from oumi.core.batch import IGNORED
from oumi.core.callbacks.guards import SignalGuard, not_finite, stopped_early
from oumi.core.checkpoint.store import apply_umask, checkpoint_path, seal, storage_errors
from oumi.core.data.pipeline.loader import Loader
from oumi.core.data.pipeline.mixture import Mixture, permute
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.world import World, seed_everything
from oumi.core.errors import ConfigError, OumiError, did_you_mean
from oumi.core.models.acceleration.liger import check_liger
from oumi.core.models.adapters import save_model, saved_size
from oumi.core.models.build import build_model
from oumi.core.monitoring.build import build_efficiency, build_reporting, write_model_summary
from oumi.core.monitoring.efficiency import Efficiency, MicroBatchSize
from oumi.core.optim.schedules import build_schedule
from oumi.core.plan.choices import SCHEDULES, is_number
from oumi.core.plan.disk import with_saved_size
from oumi.core.plan.parts import Plan
from oumi.core.run import Callbacks, Progress, StepReport
from oumi.core.trainers.resume import ResumePoint
from oumi.core.trainers.trl_methods import METHODS, NEWER_NAMES, arguments
from oumi.core.types.example import Source


class TrlTrainer:
    """Runs a trainer of TRL or transformers as the plan says."""

    def __init__(self, run: Progress, inner: Any, tokenizer: Any, checkpoint: Path | None) -> None:
        self.run = run
        self.inner = inner
        self.tokenizer = tokenizer
        self._checkpoint = checkpoint

    @classmethod
    def build(cls, plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> TrlTrainer:
        """Loads the model, and makes the other trainer around it and our rows."""
        seed_everything(plan.seed, plan.deterministic)
        method = METHODS[plan.trainer]
        with _refusals(plan):
            settings = _checked(_load(method.config), arguments(plan))
        model = build_model(plan, torch.device("cpu"))
        rows.check_vocabulary(model)
        write_model_summary(plan, model)
        plan = with_saved_size(plan, saved_size(model, plan.save_mode))
        if plan.speed.liger:
            check_liger(model)
        # On a GPU TRL, too, takes the logits of what is trained alone.
        efficiency = build_efficiency(plan, model, has_full_head=plan.trainer == "HF" or plan.device == "cpu")
        run = Progress(plan=plan, callbacks=Callbacks([SignalGuard(), build_reporting(plan, efficiency)]))
        run.state.step = start.step
        bridge = Bridge(run, efficiency, rows.train, start.facts(plan, rows.fingerprint))
        with _refusals(plan):
            trainer = _in_our_terms(_load(method.trainer), plan, bridge)(
                model=model,
                args=settings,
                train_dataset=_as_dataset(rows.train),
                eval_dataset=_as_dataset(rows.validation) if len(rows.validation) else None,
                data_collator=_collator(rows.preprocessor.tokenizer, plan.config.data.train.collator_kwargs),
                processing_class=rows.preprocessor.tokenizer,
                callbacks=[bridge],
            )
            trainer.create_optimizer()
        trainer.remove_callback(PrinterCallback)  # our console shows the steps
        return cls(run, trainer, rows.preprocessor.tokenizer, start.checkpoint)

    def train(self) -> None:
        """Takes every step of the plan."""
        try:
            self.inner.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        finally:
            self.run.callbacks.close()
        if self.run.stop_requested and self.run.state.step < self.run.plan.num_steps:
            raise stopped_early(self.run)

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer."""
        plan = self.run.plan
        if plan.checkpoints.final_model:
            model = self.inner.accelerator.unwrap_model(self.inner.model)
            with storage_errors(directory):
                save_model(model, directory, plan.save_mode)
                self.tokenizer.save_pretrained(directory)
                apply_umask(directory)


class Bridge(TrainerCallback):
    """Shows the steps of another trainer to our callbacks."""

    def __init__(self, run: Progress, efficiency: Efficiency, rows: Mixture, facts: Mapping[str, Any]) -> None:
        self.run = run
        self._efficiency = efficiency
        self._facts = facts
        self._rows = rows
        self._order = Loader(rows, run.plan.steps, run.plan.data.seed)
        self._micro_batches: list[MicroBatchSize] = []
        """Of the step that is being taken."""
        self._learning_rate = 0.0

    def count(self, inputs: Mapping[str, Any], loss: torch.Tensor) -> None:
        """Notes a micro-batch; raises NotFiniteError before its step moves any weight."""
        mask = inputs["attention_mask"]
        num_targets = int((inputs["labels"] != IGNORED).sum())
        self._micro_batches.append(MicroBatchSize(tuple(mask.sum(1).tolist()), num_targets, mask.numel()))
        if not torch.isfinite(loss):
            raise not_finite(self.run, f"the loss is {loss.item()}", self._rows_of_step())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.state.step = state.global_step
        self.run.callbacks.train_start(self.run)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro_batches = []
        self._efficiency.step_start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._learning_rate = parts["optimizer"].param_groups[0]["lr"]
        gradients = (weight.grad for weight in parts["model"].parameters() if weight.grad is not None)
        if not args.fp16 and not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise not_finite(self.run, "a gradient is not a finite number", self._rows_of_step())
        self._efficiency.before_update(self._micro_batches)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.stop_requested |= self.run.stop_signaled
        if self.run.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = dict(logs or {})
        if "loss" not in logs:
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
        self.run.callbacks.measured(
            self.run, {k: v for k, v in (metrics or {}).items() if is_number(v) and k != "epoch"}
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = checkpoint_path(self.run.plan.output_dir, state.global_step)
        with storage_errors(checkpoint):
            seal(checkpoint, {**self._facts, "step": state.global_step})
        self.run.callbacks.saved(self.run, checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.callbacks.train_end(self.run)

    def _rows_of_step(self) -> list[Source]:
        """Returns the rows of the step that is being taken."""
        return [self._rows[i].source for i in self._order.rows_of(self.run.state.step)]


class EpochOrder(torch.utils.data.Sampler[int]):
    """The rows in the order in which our own trainer takes them."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Turns to another epoch; called by the trainer."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        yield from permute(np.arange(self._length), self._length, self._seed, self._epoch).tolist()


def _in_our_terms(trainer_class: Any, plan: Plan, bridge: Bridge) -> Any:
    """Returns the trainer with our order of rows, schedule and guard, and a validation loss over all terms alike."""
    terms_per_row = functools.cache(lambda trainer: _terms_per_row(trainer.eval_dataset["labels"]))

    class OurTrainer(trainer_class):  # type: ignore[misc]  # the class is chosen by the plan
        def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
            return EpochOrder(len(self.train_dataset), plan.data.seed)

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
            loss, *outputs = super().prediction_step(model, inputs, *rest, **named)
            # Batches are averaged by their rows; so each is weighed by its terms a row, over those of all rows.
            return loss * (_terms_per_row(inputs["labels"]) / terms_per_row(self)), *outputs

    return OurTrainer


def _terms_per_row(labels: Iterable[Any]) -> float:
    counts = [int((torch.as_tensor(row) != IGNORED).sum()) for row in labels]
    return sum(counts) / len(counts)


@contextmanager
def _refusals(plan: Plan) -> Iterator[None]:
    """Turns what TRL and transformers find wrong with their arguments into ConfigError, in their words."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if isinstance(error, OumiError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"training: {plan.trainer} refuses the config: {reason}") from error


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _checked(config_class: Any, values: dict[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(config_class)}
    newer = {old: new for old, new in NEWER_NAMES.items() if new in fields}
    values = {newer.get(name, name): value for name, value in values.items()}
    for name in values:
        if name not in fields:
            raise ConfigError(
                f"training.trainer_kwargs.{name}: {config_class.__name__} has no such argument"
                f"{did_you_mean(name, fields)}"
            )
    return config_class(**values)


def _as_dataset(rows: Mixture) -> Dataset:
    """Returns the rows with labels; what is not trained is labelled IGNORED."""
    examples = [example for i in range(len(rows)) for example in rows.group(i)]
    labels = [np.where(example.is_target, example.tokens, IGNORED) for example in examples]
    for example in labels:
        example[0] = IGNORED  # nothing predicts the first token
    return Dataset.from_dict({"input_ids": [example.tokens for example in examples], "labels": labels})


def _collator(tokenizer: Any, kwargs: Mapping[str, Any]) -> Any:
    return DataCollatorForSeq2Seq(
        tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=kwargs.get("pad_to_multiple_of")
    )
