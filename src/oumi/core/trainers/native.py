# SPDX-License-Identifier: Apache-2.0
"""The native trainer: builds the parts of a run and passes them to the training loop."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from oumi.core.callbacks.checkpointing import Checkpointing
from oumi.core.callbacks.device_memory import EmptyCache
from oumi.core.callbacks.evaluation import build_evaluation
from oumi.core.callbacks.guards import FiniteGuard, SignalGuard, stopped_early
from oumi.core.checkpoint.state import load_state
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.parameters import Parameters
from oumi.core.distributed.world import World, seed_everything
from oumi.core.engine.gradients import record_pass, try_largest_micro_batch
from oumi.core.engine.loop import fit
from oumi.core.methods.method import build_method
from oumi.core.models.acceleration.apply import accelerate
from oumi.core.models.acceleration.checkpointing import recompute_layers
from oumi.core.models.adapters import saved_size
from oumi.core.models.build import build_model
from oumi.core.models.sharded import base_weights, shard_model
from oumi.core.monitoring.build import build_efficiency, build_reporting, write_model_summary
from oumi.core.optim.optimizers import build_optimizer
from oumi.core.optim.schedules import build_schedule
from oumi.core.plan.disk import with_saved_size
from oumi.core.plan.parts import Plan
from oumi.core.run import Callback, Callbacks, Run
from oumi.core.trainers.export import Exporter
from oumi.core.trainers.reference import load_reference
from oumi.core.trainers.resume import ResumePoint, restore_best


class NativeTrainer:
    """Trains with the native loop: flat batches, a loss that is the mean over all terms of a step, exact resume."""

    def __init__(self, run: Run, data: TrainingData, resume_point: ResumePoint, exporter: Exporter) -> None:
        self.run = run
        self._data = data
        self._exporter = exporter
        self._resume_point = resume_point

    @classmethod
    def build(cls, plan: Plan, world: World, data: TrainingData, resume_point: ResumePoint) -> NativeTrainer:
        """Loads the model, and restores the state of a checkpoint if the run is resumed."""
        seed_everything(plan.seed, plan.deterministic, plan.device)  # before random weights are drawn
        source = base_weights(plan, world, resume_point.checkpoint)
        model = build_model(plan, world.device, resume_point.checkpoint, source, data.first_documents(plan))
        exporter = Exporter(plan, model, data.preprocessor)
        if plan.gradient_checkpointing is not None:
            recompute_layers(model, plan.gradient_checkpointing)
        write_model_summary(plan, model)
        data.check_vocabulary(model)
        plan = with_saved_size(plan, saved_size(model, plan.save_mode))
        language_model = accelerate(model, plan)
        shard_model(language_model, plan, world, source)
        parameters = Parameters(language_model, world)
        optimizer = build_optimizer(language_model, plan.optimizer, parameters.by_name)
        run = Run(
            plan=plan,
            callbacks=Callbacks([]),
            world=world,
            model=language_model,
            method=build_method(plan, partial(load_reference, plan, world, language_model, data, resume_point)),
            parameters=parameters,
            optimizer=optimizer,
            schedule=build_schedule(optimizer, plan.schedule, plan.num_steps),
            scaler=torch.amp.GradScaler(world.device.type, enabled=plan.precision.autocast == "float16"),
            loader=data.loader(plan, world.rank),
        )
        if world.rank:  # otherwise all ranks would draw the same dropout masks
            torch.manual_seed(plan.seed + world.rank)
        if resume_point.checkpoint is not None:  # last, since it restores the random states
            load_state(run, resume_point.checkpoint)
        trainer = cls(run, data, resume_point, exporter)
        run.callbacks = Callbacks(trainer._callbacks())
        return trainer

    def train(self) -> None:
        """Runs every step of the plan; raises PreemptedError if the run was stopped before the last one."""
        run = self.run
        record_pass(run)
        if run.world.device.type == "cuda":  # on a CPU, the system kills a process instead of raising an error
            try_largest_micro_batch(run, self._data.largest(run.plan))
        try:
            fit(run)
        finally:
            run.callbacks.close()
        if not run.is_complete:
            raise stopped_early(run)

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer, on the main rank."""
        restore_best(self.run)
        self._exporter.publish(directory, self.run.world)

    def _callbacks(self) -> list[Callback]:
        plan, world, data = self.run.plan, self.run.world, self._data
        facts = self._resume_point.facts(plan, data.fingerprint)
        checkpointing = Checkpointing(self._exporter, facts, self._resume_point.step)
        callbacks: list[Callback] = [SignalGuard(), FiniteGuard(checkpointing.save_last_step)]
        if world.is_main:
            efficiency = build_efficiency(plan, self.run.model.inner, self.run.model.has_full_head)
            callbacks.append(build_reporting(plan, efficiency))
        if len(data.validation):
            callbacks.append(build_evaluation(plan, world, data))
        if plan.empty_cache_every is not None and world.device.type != "cpu":
            callbacks.append(EmptyCache(plan.empty_cache_every))
        return [*callbacks, checkpointing]  # last, so that a checkpoint comes after the evaluation of its step
