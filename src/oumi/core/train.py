# SPDX-License-Identifier: Apache-2.0
"""THE story: check, plan, train, save."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oumi.core import log
from oumi.core.checkpoint.identity import lock_output_dir
from oumi.core.checkpoint.store import storage_errors
from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import dump
from oumi.core.data.training_data import load_training_data, write_report
from oumi.core.distributed.world import World, determinism_restored
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts, index_ahead
from oumi.core.model_card import write_card
from oumi.core.plan.fitting import with_rows
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import check
from oumi.core.plan.render import plan_text
from oumi.core.plan.trajectory import check_same_on_ranks, shared_values
from oumi.core.run_directory import write_plan, write_records
from oumi.core.system import host
from oumi.core.system.signals import signals_answered
from oumi.core.system.terminal import lasting_output
from oumi.core.trainers.resume import claim, find_resume_point, mark_finished
from oumi.core.trainers.trainer import TRAINERS


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: where it is, how far it came, and the last value of everything measured."""

    output_dir: Path
    steps: int
    metrics: Mapping[str, float]


@lasting_output()
@signals_answered()
def train(
    config: TrainingConfig,
    additional_model_kwargs: Mapping[str, Any] | None = None,
    additional_trainer_kwargs: Mapping[str, Any] | None = None,
    verbose: bool = False,
    source: str | None = None,
) -> TrainResult:
    """Trains the model that a config describes.

    Args:
        config: The run. It is not changed.
        additional_model_kwargs: Joined with `model.model_kwargs`.
        additional_trainer_kwargs: Joined with `training.trainer_kwargs`.
        verbose: Print the whole config first.
        source: Text of the config file, to be kept as given.

    Raises:
        OumiError: What the user can mend, by kind: config, data, output, storage, stopped, not finite.
    """
    host.keep_freed_memory()
    host.limit_kernel_caches()
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"train() takes a TrainingConfig, got {type(config).__name__}")
    config = config.with_kwargs(additional_model_kwargs or {}, additional_trainer_kwargs or {}).on_attempt()
    check(config)  # every problem at once, before anything is loaded
    index_ahead(config)
    TRAINERS.get(config.training.trainer_type.name)  # imports what takes long, meanwhile
    with World.start(config.training.nccl_default_timeout_minutes) as world:
        facts = gather_facts(config, may_download=True, local_size=world.local_size)
        plan = make_plan(config, facts, world.size, world.local_size)  # pure: every number decided
        if world.is_main:
            text = dump(config, hides_secrets=True) if verbose else ""
            print(text + plan_text(plan), file=sys.stderr, flush=True)
        with (
            world.held_by_main(lock_output_dir(plan.output_dir)),
            storage_errors(plan.output_dir),
            log.file(plan.output_dir, plan.logs.level),
            determinism_restored(),
        ):
            log.logger.info("%s", plan_text(plan))
            return _run(plan, world, source)


def _run(plan: Plan, world: World, source: str | None) -> TrainResult:
    resume_point = world.on_main(lambda: find_resume_point(plan))
    with world.run_first():  # the main rank makes tokens of the rows, the others read them
        data = load_training_data(plan, resume_point.began, writes=world.is_main)
    if world.on_main(lambda: resume_point.is_finished(plan, data.fingerprint)):
        step = resume_point.identity.finished_step or 0
        world.on_main(lambda: print(f"already complete after step {step}: {plan.output_dir}", file=sys.stderr))
        return TrainResult(plan.output_dir, step, resume_point.identity.metrics or {})
    resume_point.check_rows(data.fingerprint)
    plan = with_rows(data.with_added_tokens(plan), data.num_rows, data.largest)  # refused here if memory is short
    check_same_on_ranks(world.gather(shared_values(plan, data.fingerprint)))
    resume_point = world.on_main(lambda: claim(plan, resume_point, data.fingerprint))
    world.on_main(lambda: write_records(plan, source))
    trainer = TRAINERS.get(plan.trainer).build(plan, world, data, resume_point)
    world.on_main(lambda: write_plan(trainer.run.plan))
    try:
        try:
            trainer.train()
        finally:
            data.close()
            if world.is_main:
                write_report(plan.output_dir, data.ledgers, data.duplicates)
        trainer.save(plan.output_dir)
        world.on_main(lambda: write_card(trainer.run, data.ledgers))
        world.on_main(lambda: mark_finished(trainer.run, resume_point, data.fingerprint))
    finally:
        trainer.run.callbacks.wait()
    return TrainResult(plan.output_dir, trainer.run.state.step, dict(trainer.run.metrics))
