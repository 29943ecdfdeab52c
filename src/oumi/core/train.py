# SPDX-License-Identifier: Apache-2.0
"""THE story: check, plan, train, save."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oumi.core import log
from oumi.core.checkpoint.identity import Identity, lock_output_dir
from oumi.core.checkpoint.store import storage_errors
from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import dump
from oumi.core.data.training_data import load_training_data, write_report
from oumi.core.distributed.world import World
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts, index_ahead
from oumi.core.plan.fitting import with_rows
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import check
from oumi.core.plan.render import plan_text
from oumi.core.run_directory import write_plan, write_records
from oumi.core.system import host
from oumi.core.trainers.resume import begin, find_resume_point, mark_finished
from oumi.core.trainers.trainer import TRAINERS


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: where it is, how far it came, and the last value of everything measured."""

    output_dir: Path
    steps: int
    metrics: Mapping[str, float]


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
    host.keep_little_code()
    config = _joined(config, additional_model_kwargs or {}, additional_trainer_kwargs or {})
    check(config)  # every problem at once, before anything is loaded
    index_ahead(config)
    TRAINERS.get(config.training.trainer_type.name)  # imports what takes long, meanwhile
    with World.start() as world:
        plan = make_plan(config, gather_facts(config, may_download=True), world.size)  # pure: every number decided
        print(
            dump(config, hides_secrets=True) + plan_text(plan) if verbose else plan_text(plan),
            file=sys.stderr,
            flush=True,
        )
        with (
            lock_output_dir(plan.output_dir),
            storage_errors(plan.output_dir),
            log.file(plan.output_dir, plan.logs.level),
        ):
            log.logger.info("%s", plan_text(plan))
            return _run(plan, world, source)


def _run(plan: Plan, world: World, source: str | None) -> TrainResult:
    start = find_resume_point(plan)
    data = load_training_data(plan, start.began)
    if start.is_finished(plan, data.fingerprint):
        return _complete(plan, start.identity)
    start.check_rows(data.fingerprint)
    plan = with_rows(plan, data.num_rows, data.largest)  # refused here if memory is short
    begin(plan, start)
    write_records(plan, source)
    trainer = TRAINERS.get(plan.trainer).build(plan, world, data, start)
    write_plan(trainer.run.plan)
    try:
        trainer.train()
    finally:
        data.close()
        write_report(plan.output_dir, data.ledgers, data.duplicates)
    trainer.save(plan.output_dir)
    mark_finished(trainer.run, start, data.fingerprint)
    return TrainResult(plan.output_dir, trainer.run.state.step, dict(trainer.run.metrics))


def _complete(plan: Plan, run: Identity) -> TrainResult:
    print(f"already complete after step {run.finished_step}: {plan.output_dir}", file=sys.stderr)
    return TrainResult(plan.output_dir, run.finished_step or 0, run.metrics or {})


def _joined(
    config: TrainingConfig, model_kwargs: Mapping[str, Any], trainer_kwargs: Mapping[str, Any]
) -> TrainingConfig:
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"train() takes a TrainingConfig, got {type(config).__name__}")
    if not model_kwargs and not trainer_kwargs:
        return config
    joined = config.model_copy(deep=True)
    joined.model.model_kwargs = {**joined.model.model_kwargs, **model_kwargs}
    joined.training.trainer_kwargs = {**joined.training.trainer_kwargs, **trainer_kwargs}
    return joined
