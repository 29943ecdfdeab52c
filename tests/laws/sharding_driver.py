# SPDX-License-Identifier: Apache-2.0
"""Trains the configs that it is given, one after the other, on the ranks of a launcher; started by test_sharding.py.

Each is named with the port on which its ranks meet. Where the name begins with `short_forward` or `short_backward`,
rank 1 runs out of memory in the second layer with more than 120 tokens at a time, or 200 tokens of pairs.
With `back`, the run is put back from step 7 to its checkpoint of step 3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import load_training_data
from oumi.core.distributed.world import World
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.resume import find_resume_point
from tests.core.trainers.test_restore import BackOnce

LIMITS = {None: 120, "dpo": 200, "kto": 120, "orpo": 200}
"""Tokens that fit at a time, by method."""


class Backward(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, limit: int) -> torch.Tensor:
        ctx.limit = limit
        return states.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        if gradients[0].shape[-2] > ctx.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradients[0], None


def forward(limit: int, _: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
    if arguments[0].shape[-2] > limit:
        raise torch.OutOfMemoryError("CUDA out of memory")


@contextmanager
def built_trainer(config: TrainingConfig) -> Iterator[NativeTrainer]:
    """Yields the trainer of a run, ready to take its first step."""
    with World.start() as world:
        plan = make_plan(config, gather_facts(config), world.size, world.local_size)
        world.on_main(lambda: plan.output_dir.mkdir(exist_ok=True))
        data = load_training_data(plan, datetime(2026, 1, 1), writes=world.is_main)
        resume_point = world.on_main(lambda: find_resume_point(plan))
        yield NativeTrainer.build(plan.with_num_rows(data.num_rows), world, data, resume_point)


def train_with_small_memory(config: TrainingConfig, is_forward: bool) -> None:
    with built_trainer(config) as trainer:
        if trainer.run.world.rank == 1:
            mlp = trainer.run.model.inner.get_decoder().layers[1].mlp
            limit = LIMITS[config.training.method]
            hook = partial(forward, limit) if is_forward else lambda _, x: (Backward.apply(x[0], limit),)
            mlp.register_forward_pre_hook(hook)
        trainer.train()
        assert trainer.run.state.parts > 1, "all ranks cut their micro-batches"
        trainer.save(trainer.run.plan.output_dir)


def train_with_a_step_back(config: TrainingConfig) -> None:
    with built_trainer(config) as trainer:
        output = trainer.run.plan.output_dir
        trainer.run.callbacks.all.append(BackOnce(output / "checkpoint-3", at_step=7))
        trainer.train()
        trainer.save(output)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        os.environ["MASTER_PORT"], _, name = argument.partition(":")
        path = Path(name)
        config = TrainingConfig.from_yaml(path)
        if path.stem.startswith("short"):
            train_with_small_memory(config, path.stem.startswith("short_forward"))
        elif path.stem.startswith("back"):
            train_with_a_step_back(config)
        else:
            train(config)
