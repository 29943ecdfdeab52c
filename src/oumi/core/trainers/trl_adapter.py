# SPDX-License-Identifier: Apache-2.0
"""What our runs change in a trainer of TRL or transformers: rows, schedule, evaluation, files, on all ranks alike."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from oumi.core.batch import Batch
from oumi.core.callbacks.evaluation import build_sampler, with_bits_per_byte, with_perplexity
from oumi.core.callbacks.samples import Sampler
from oumi.core.checkpoint.store import checkpoint_path
from oumi.core.data.build_stream import StreamedRows
from oumi.core.data.pipeline.loader import Epoch
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.world import World
from oumi.core.errors import OtherRankError
from oumi.core.models.acceleration.flat import generating
from oumi.core.models.build import load_weights
from oumi.core.models.custom import CustomModel
from oumi.core.models.initialization import begins_with_base, load_trained
from oumi.core.optim.optimizers import decayed_names
from oumi.core.optim.schedules import build_schedule
from oumi.core.plan.choices import SCHEDULES
from oumi.core.plan.parts import Plan
from oumi.core.system.filesystem import storage_errors
from oumi.core.system.signals import signals_held
from oumi.core.trainers.export import Exporter
from oumi.core.trainers.trl_bridge import Bridge, EvaluationStoppedError
from oumi.core.trainers.trl_inputs import ModelInputs
from oumi.core.trainers.trl_rows import Collator, EpochLoader, Join, RankBatches, RowCollator, StreamBatches


@dataclass(frozen=True)
class Seams:
    """What an adapted trainer needs of ours."""

    plan: Plan
    bridge: Bridge
    exporter: Exporter
    rows: TrainingData
    inputs: ModelInputs
    join: Join


def adapted(trainer_class: type[Trainer], adapter: type[AdaptedTrainer], seams: Seams) -> Any:
    """Returns a subclass of a trainer that acts as the run wants it, by the methods of an adapter."""
    return type(trainer_class.__name__, (adapter, trainer_class), {"seams": seams})


class AdaptedTrainer(Trainer):
    """The methods that replace those of the other trainer."""

    seams: Seams

    @property
    def _world(self) -> World:
        return self.seams.bridge.world

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *_: Any, is_training: bool = False, **__: Any
    ) -> EpochLoader | StreamBatches:
        rows = self.seams.rows.train if is_training else self.seams.rows.validation
        if isinstance(rows, StreamedRows):
            return StreamBatches(self.seams.bridge.source, self.seams.bridge.run.state.step)
        seed = self.seams.plan.data.seed if is_training else None
        batches = RankBatches(len(rows), batch_size, self._world, seed)
        return EpochLoader(range(len(rows) + 1), batches, self._collator(rows), self.args)  # with the blank row

    def _collator(self, rows: Epoch) -> Collator:
        """Returns the function that makes a micro-batch of rows, by their numbers."""
        return RowCollator(rows, self.seams.join)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if "error" in inputs:
            raise inputs["error"]
        return self.seams.inputs(inputs["batch"].to(self.args.device))

    def floating_point_ops(self, inputs: Any) -> int:
        return int(super().floating_point_ops({self.model.main_input_name: inputs["batch"].tokens}))

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return sorted(decayed_names(model))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = self.seams.plan.schedule
        if schedule.name not in SCHEDULES:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, schedule, num_training_steps)
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        batch = inputs["batch"]
        self.seams.bridge.count(batch, self.seams.inputs.num_positions(batch), loss)
        return loss

    def evaluation_loop(
        self, dataloader: Any, description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        # transformers averages the losses of batches weighted by rows; this is the mean over terms.
        sums = torch.zeros(2, dtype=torch.float64)
        for part in (self.model, self.optimizer):
            if callable(getattr(part, "eval", None)):  # some optimizers have other weights for it
                part.eval()
        for inputs in dataloader:
            if self.seams.bridge.stop_is_signaled():
                raise EvaluationStoppedError
            num_terms = self._num_terms(inputs["batch"])
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(self.model, self._prepare_inputs(inputs))  # the mean of this batch alone
            if num_terms:  # the mean over no terms is not a number
                sums += torch.tensor([float(loss) * num_terms, num_terms], dtype=torch.float64)
        loss_sum, num_terms = self._world.sum(sums).tolist()
        means = {"loss": loss_sum / max(num_terms, 1), **self._take_means()}
        named = {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        metrics = with_perplexity(named, self.seams.plan, metric_key_prefix)
        metrics = with_bits_per_byte(metrics, self.seams.plan, self.seams.rows, metric_key_prefix)
        self._answer_samples()
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))

    def _num_terms(self, batch: Batch) -> int:
        """Returns how many terms the loss of a micro-batch averages."""
        return batch.num_targets

    def _take_means(self) -> dict[str, float]:
        """Returns the means of what the loss measures beside, over the whole set."""
        return {}

    def _send_telemetry(self) -> None:
        """Sends nothing: TRL would report the model, the data and the device to the Hub."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if begins_with_base(self.model):  # whose files have twice the rank
            load_trained(self.model, Path(resume_from_checkpoint))
        elif isinstance(self.model, CustomModel):  # which has its own form of files
            load_weights(self.model, self.seams.plan, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @cached_property
    def _sampler(self) -> Sampler | None:
        return build_sampler(self.seams.plan, self._world, self.seams.rows)

    def _answer_samples(self) -> None:
        run = self.seams.bridge.run
        if self._sampler is not None:
            with generating(self.seams.inputs.language_model) as model:
                samples = self._sampler.samples(model)
            run.callbacks.sampled(run, samples)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        checkpoint = checkpoint_path(self.seams.plan.output_dir, step)
        with signals_held(), storage_errors(checkpoint):
            try:
                with _failing_together(self._world):
                    super()._save_checkpoint(model, trial)
                self._world.on_main(lambda: self.seams.bridge.seal(step))
            except (OSError, RuntimeError, SafetensorError, OtherRankError):
                if self._world.is_main:  # a part of it would only take up a full disk
                    shutil.rmtree(checkpoint, ignore_errors=True)
                raise

    # What the main rank writes alone raises on all ranks if it fails, so that none waits for it.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        directory = Path(output_dir or self.seams.plan.output_dir)
        with self.seams.exporter.gathered(self._world):
            self._world.on_main(lambda: self.seams.exporter.write(directory))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save = partial(super()._save_optimizer_and_scheduler, output_dir)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # each rank has a part
            with _failing_together(self._world):
                save()
        else:
            self._world.on_main(save)

    def _save_scaler(self, output_dir: str) -> None:
        self._world.on_main(partial(super()._save_scaler, output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        with TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            states = self._world.gather({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        files = {Path(output_dir, name): content for state in states for name, content in state.items()}
        self._world.on_main(lambda: _write_files(files))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes nothing: the card of TRL would replace a README of the user."""


@contextmanager
def _failing_together(world: World) -> Iterator[None]:
    """Raises OtherRankError on the ranks where a block succeeds if it fails on another one."""
    has_failed, on_any = 1, 0
    try:
        yield
        has_failed = 0
    finally:
        on_any = world.agree(has_failed)
    if on_any:
        raise OtherRankError("another rank could not write its part of the checkpoint; its message says why")


def _write_files(files: Mapping[Path, bytes]) -> None:
    for path, content in files.items():
        path.write_bytes(content)
