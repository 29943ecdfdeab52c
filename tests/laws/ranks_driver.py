# SPDX-License-Identifier: Apache-2.0
"""Trains the configs that it is given, one after the other, on the ranks of a launcher; started by test_ranks.py.

Each is named with the port on which its ranks meet. Where the file is called `short.yaml`, rank 1 runs out of memory
with more than 120 tokens at a time; `poisoned.yaml` has a loss that is not finite.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

import torch
from accelerate.state import PartialState

from oumi.core.batch import Batch
from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import load_training_data
from oumi.core.distributed.world import World
from oumi.core.errors import NotFiniteError
from oumi.core.inspect import gather_facts
from oumi.core.methods.method import Loss, StepSums
from oumi.core.methods.next_token import NextToken
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.resume import find_resume_point


class SmallMemory(NextToken):
    """The loss on a device with room for 120 tokens."""

    def loss(self, model: torch.nn.Module, batch: Batch, step: StepSums) -> Loss:
        loss = super().loss(model, batch, step)
        if batch.num_tokens > 120:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss


def train_with_small_memory(config: TrainingConfig) -> None:
    with World.start() as world:
        plan = make_plan(config, gather_facts(config), world.size)
        plan.output_dir.mkdir(exist_ok=True)
        data = load_training_data(plan, datetime(2026, 1, 1), writes=world.is_main)
        resume_point = world.on_main(lambda: find_resume_point(plan))
        trainer = NativeTrainer.build(plan.with_num_rows(data.num_rows), world, data, resume_point)
        if world.rank == 1:
            trainer.run.method = SmallMemory(trainer.run.plan, lambda: sys.exit("this method has no reference"))
        trainer.train()
        assert trainer.run.state.parts > 1, "both ranks cut their micro-batches"
        trainer.save(plan.output_dir)


def train_until_not_finite(config: TrainingConfig) -> None:
    try:
        train(config)
    except NotFiniteError as error:
        print(error)
    else:
        sys.exit("a loss that is not finite was not noticed")


SPECIAL = {"short": train_with_small_memory, "poisoned": train_until_not_finite}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        os.environ["MASTER_PORT"], _, name = argument.partition(":")
        path = Path(name)
        environment = dict(os.environ)
        SPECIAL.get(path.stem, train)(TrainingConfig.from_yaml(path))
        if path.stem in ("trl", "hf", "poisoned"):  # the first run of all sets variables for the process
            assert dict(os.environ) == environment, set(os.environ.items()) ^ set(environment.items())
        assert not PartialState._shared_state, "no state of Accelerate is left for the next run"
