# SPDX-License-Identifier: Apache-2.0
"""Trains configs of other trainers on ranks that Accelerate divides a model over; started by tests.

On a CPU, Accelerate divides nothing, since it takes the ranks for another kind. Told that they are GPUs, it divides
models over gloo as it does over NCCL. With GPUs nothing of that is needed. Each config is named with the port on which
its ranks meet.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.tensor import DTensor

from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import load_training_data
from oumi.core.distributed.world import World
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.trainers.resume import find_resume_point
from oumi.core.trainers.trl import TrlTrainer

RANKS_PER_NODE = 2
HAS_GPUS = torch.cuda.is_available()


class CpuAsGpu(PartialState):
    """Ranks on a CPU that are taken for GPUs."""

    def _prepare_backend(self, *_: object, **__: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    def set_device(self) -> None:
        self.device = torch.device("cpu")


def train_divided(config: TrainingConfig) -> None:
    with World.start() as world:
        if config.deepspeed.enable_deepspeed and not HAS_GPUS:
            import deepspeed

            deepspeed.init_distributed("gloo")  # which Accelerate does on a GPU
        facts = gather_facts(config)
        as_if = facts if HAS_GPUS else replace(facts, device="cuda", has_bf16=True)
        plan = replace(make_plan(config, as_if, world.size, RANKS_PER_NODE), device=facts.device)
        plan.output_dir.mkdir(exist_ok=True)
        data = load_training_data(plan, datetime(2026, 1, 1), writes=world.is_main)
        resume_point = world.on_main(lambda: find_resume_point(plan))
        trainer = TrlTrainer.build(plan.with_num_rows(data.num_rows), world, data, resume_point)
        trainer.train()
        if config.fsdp.enable_fsdp:
            assert all(isinstance(weight, DTensor) for weight in trainer.inner.model.parameters())
            assert not trainer.inner.args.gradient_checkpointing, "FSDP recomputes by itself"
        trainer.save(plan.output_dir)
        trainer.run.callbacks.wait()


if __name__ == "__main__":
    if not HAS_GPUS:
        PartialState._prepare_backend = CpuAsGpu._prepare_backend
        PartialState.set_device = CpuAsGpu.set_device
    for argument in sys.argv[1:]:
        os.environ["MASTER_PORT"], _, name = argument.partition(":")
        train_divided(TrainingConfig.from_yaml(Path(name)))
