# SPDX-License-Identifier: Apache-2.0
"""Takes a step as rank 0 of many ranks that do not exist, with tensors that have no memory.

Started by test_many_ranks.py in a process of its own, since torch has one set of process groups in a process.
Arguments: the config of the model as JSON, and the sharding plan as JSON. Prints what rank 0 holds and sends.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from oumi.core.distributed.sharding import build_mesh, shard_modules
from oumi.core.plan.sharding import ShardingPlan
from tests.core.plan.collectives import Collectives

settings: dict[str, Any] = json.loads(sys.argv[1])
plan = ShardingPlan(**json.loads(sys.argv[2]))
world_size = plan.num_shards * plan.num_replicas
distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)  # type: ignore[no-untyped-call]
mesh = build_mesh(plan, "cpu")
torch.set_default_dtype(torch.bfloat16)
with FakeTensorMode():
    with no_init_weights():
        model = LlamaForCausalLM(LlamaConfig(**settings))
    shard_modules(model, list(model.model.layers), plan, mesh, ())
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros(1, 128, dtype=torch.long)
    with Collectives() as collectives:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    report = {
        "shapes": {name: list(weight.to_local().shape) for name, weight in model.named_parameters()},
        "weights": sum(weight.to_local().nbytes for weight in model.parameters()),
        "gradients": sum(weight.grad.to_local().nbytes for weight in model.parameters()),
        "state": sum(value.to_local().nbytes for value in state),
        "calls": collectives.calls,
    }
print(json.dumps(report))
