# SPDX-License-Identifier: Apache-2.0
"""The reference of a run: computed beside each step, or for all rows before the first one and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from oumi.core.batch import Batch, Prediction
from oumi.core.data.build_stream import StreamedRows
from oumi.core.data.pipeline.loader import in_order
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.sharding import free_gathered
from oumi.core.distributed.world import World
from oumi.core.errors import ConfigError, PreemptedError
from oumi.core.log import logger
from oumi.core.methods.kept_log_probs import KeptLogProbs, row_digests, values_of_rows
from oumi.core.methods.log_probs import LogProbs, log_probs_of
from oumi.core.methods.method import Reference
from oumi.core.models.reference import build_reference
from oumi.core.plan.parts import Plan
from oumi.core.recipes import resolve_asset
from oumi.core.run import autocast_of
from oumi.core.system.cache import cache_home, digest_of_values
from oumi.core.system.filesystem import expanded
from oumi.core.system.signals import is_stop_requested
from oumi.core.trainers.resume import ResumePoint

_KEY = "training.trainer_kwargs.precompute_ref_log_probs"


def load_reference(plan: Plan, world: World, model: Any, data: TrainingData, resume_point: ResumePoint) -> Reference:
    """Returns the reference of a run's method.

    Args:
        plan: The plan of the run.
        world: This rank.
        model: The model in training, as the loop calls it.
        data: The rows of the run.
        resume_point: Where the run resumes; from a checkpoint, the model is not its own reference any more.

    Raises:
        ConfigError: The log-probabilities are to be kept, and rows have images.
        PreemptedError: A signal to stop came while they were computed.
    """
    if not plan.method.keeps_log_probs:
        return partial(_live, build_reference(plan, world, model, is_copy=plan.method.copies_reference))
    batches = partial(_all_batches, plan, world, data)
    path = _path(plan, world, batches())
    kept = KeptLogProbs.read(path)
    if world.agree(int(kept is None)):
        # Before the first step, the model itself is the reference.
        is_copy = plan.method.copies_reference and resume_point.checkpoint is not None
        predict = build_reference(plan, world, model, is_copy=is_copy)
        kept = _computed(plan, world, predict, batches())
        free_gathered(model)
        if world.is_main:
            try:
                kept.write(path)
            except (OSError, SafetensorError) as error:  # this run has them in memory, as with other caches
                logger.warning("log-probabilities of the reference are not kept for later runs: %s", error)
    else:
        logger.info("log-probabilities of the reference: %s", path)
    assert kept is not None, "all ranks have read them, or all have computed them"
    return kept


def _live(predict: Callable[[Batch], Prediction], batch: Batch) -> LogProbs:
    with torch.no_grad():
        return log_probs_of(predict(batch), batch)


def _all_batches(plan: Plan, world: World, data: TrainingData) -> Iterator[Batch]:
    """Yields this rank's share of the rows of training and validation, as many batches as on the other ranks."""
    for rows in (data.train, data.validation):
        assert not isinstance(rows, StreamedRows), "streams are refused"
        yield from in_order(rows, plan.steps.micro_batch_rows, data.preprocessor.collate, world.rank, world.size)


def _path(plan: Plan, world: World, batches: Iterator[Batch]) -> Path:
    """Returns the file of the log-probabilities, by all that decides them: the model, its dtype, and the rows."""
    digests = set()
    for batch in batches:
        if batch.num_images:  # which tokens do not tell apart
            raise ConfigError(f"{_KEY}: {batch.sources[0]} has images; leave it out")
        digests.update(row_digests(batch))
    rows = sorted(set().union(*world.gather(digests)))
    inputs = {
        "model": asdict(plan.model),
        "files": [*_local_files(plan.model.name), *_local_files(plan.model.adapter)],
        "seed": None if plan.model.pretrained else plan.seed,
        "precision": asdict(plan.precision),
        "lora": asdict(plan.lora) if plan.lora is not None and plan.method.copies_reference else None,
        "rows": digest_of_values({"rows": [digest.hex() for digest in rows]}),
    }
    return cache_home() / "reference" / f"{digest_of_values(inputs)}.safetensors"


def _local_files(name: str | None) -> Iterator[tuple[str, int, int]]:
    """Yields name, size and time of the weights' files in a local directory; a digest of their ends is in the plan.

    After an adapter is merged, the ends may be what they were.
    """
    directory = expanded(str(resolve_asset(name))) if name else None
    for path in sorted(directory.glob("*.*")) if directory is not None and directory.is_dir() else ():
        if path.suffix in (".safetensors", ".bin"):
            yield path.name, path.stat().st_size, path.stat().st_mtime_ns


def _computed(
    plan: Plan, world: World, predict: Callable[[Batch], Prediction], batches: Iterator[Batch]
) -> KeptLogProbs:
    """Returns the log-probabilities of the rows of all ranks."""
    logger.info("log-probabilities of the reference are computed for all rows before the first step")
    began, rows = time.monotonic(), {}
    for batch in batches:
        if world.agree(int(is_stop_requested())):
            raise PreemptedError("stopped while the reference was computed; the same command begins it anew")
        with autocast_of(plan, world.device):
            log_probs = _live(predict, batch.to(world.device))
        rows.update(values_of_rows(log_probs.values, batch))
    for more in world.gather(rows):
        rows.update(more)
    logger.info("log-probabilities of the reference for %d rows: %.1f s", len(rows), time.monotonic() - began)
    return KeptLogProbs.of(rows)
