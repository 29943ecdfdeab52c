# SPDX-License-Identifier: Apache-2.0
"""A rank of 256 builds and steps a model of the shape of Llama 70B, and holds and sends what the plan says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.plan.communication import plan_communication
from oumi.core.plan.disk import state_bytes
from oumi.core.plan.division import divide
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.shapes import shape_of
from oumi.core.system.devices import DEVICES
from tests.fork_server import run_python

DRIVER = Path(__file__).with_name("fake_ranks_driver.py")
WORLD_SIZE, RANKS_PER_NODE = 256, 8
LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28_672,
    "vocab_size": 128_256,
    "tie_word_embeddings": False,
}
CASES = [
    pytest.param(strategy, layers, marks=[pytest.mark.slow] if layers == 80 else [], id=f"{strategy}-{layers}")
    for layers in (2, 80)
    for strategy in ("FULL_SHARD", "HYBRID_SHARD")
]


def plan_of(strategy: str, num_layers: int) -> Plan:
    """Returns the plan of a run on 32 nodes of 8 H100."""
    machine = DEVICES["h100-80gb"]
    config = TrainingConfig.model_validate(
        {
            "model": {"model_name": "some/model", "model_max_length": 4096},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {
                "trainer_type": "OUMI",
                "output_dir": "out",
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "enable_gradient_checkpointing": True,
            },
            "fsdp": {"enable_fsdp": True, "sharding_strategy": strategy},
        }
    )
    shape = shape_of({"model_type": "llama", **LLAMA_70B, "num_hidden_layers": num_layers})
    model = ModelFacts(are_available=True, stored_dtype="bfloat16", shape=shape)
    facts = Facts("cuda", machine.name, True, 8, machine.memory_bytes, 10**15, num_rows=10**6, model=model)
    return make_plan(config, facts, WORLD_SIZE, RANKS_PER_NODE)


@pytest.mark.parametrize(("strategy", "num_layers"), CASES)
def test_a_rank_of_many_holds_and_sends_what_the_plan_says(strategy: str, num_layers: int) -> None:
    plan = plan_of(strategy, num_layers)
    division, sent = divide(plan), plan_communication(plan)
    assert plan.sharding is not None
    assert division is not None
    assert sent is not None
    settings = {**LLAMA_70B, "num_hidden_layers": num_layers, "attn_implementation": "sdpa"}
    result = run_python(
        str(DRIVER), json.dumps(settings), json.dumps(asdict(plan.sharding)), folder=Path(__file__).parents[3]
    )
    assert result.returncode == 0, result.stderr
    rank = json.loads(result.stdout.splitlines()[-1])
    num_shards = 256 if strategy == "FULL_SHARD" else 8
    assert plan.sharding.num_shards == num_shards
    assert rank["shapes"]["lm_head.weight"] == [128_256 // num_shards, 8192]
    assert rank["shapes"]["model.layers.1.self_attn.k_proj.weight"] == [1024 // num_shards, 8192]
    assert rank["weights"] == rank["gradients"] == division.slice_bytes()
    assert rank["state"] == state_bytes(plan.optimizer, division.slice_bytes(only_trained=True), 2)
    _assert_sends(rank["calls"], num_shards, num_layers)
    sizes = {kind: sum(size for name, size in rank["calls"] if name == kind) for kind in ("gather", "scatter", "sum")}
    share = (num_shards - 1) / num_shards
    assert sent.gathered_bytes == int(sizes["gather"] * share)
    assert sent.reduced_bytes == int(sizes["scatter"] * share)
    num_copies = WORLD_SIZE // num_shards
    assert sent.between_copies_bytes == int(sizes["sum"] * 2 * (num_copies - 1) / num_copies)


def _assert_sends(calls: list[tuple[str, int]], num_shards: int, num_layers: int) -> None:
    """Asserts the order of a step: the root first, the blocks up and down, and gradients as soon as they are there."""
    kinds = [kind for kind, _ in calls if kind != "sum"]
    gathered = [size for kind, size in calls if kind == "gather"]
    block = gathered[1]
    assert gathered == [gathered[0], *[block] * (2 * num_layers)]
    assert gathered[0] > block
    assert kinds[: num_layers + 1] == ["gather"] * (num_layers + 1), "nothing is reduced in the forward pass"
    assert kinds[-1] == "scatter", "the root, which is used first, has its gradients last"
    assert kinds.count("scatter") == num_layers + 1
    assert ("sum" in {kind for kind, _ in calls}) == (num_shards < WORLD_SIZE)


def test_a_70b_fits_on_256_devices_and_not_on_8() -> None:
    plan = plan_of("FULL_SHARD", 80)
    assert plan.memory is not None
    assert not plan.memory.is_short
    copies = plan_of("HYBRID_SHARD", 80)
    assert copies.memory is not None
    assert copies.memory.is_short
    assert any(note.startswith("memory: not enough") for note in copies.notes)


def test_parts_add_up_over_the_ranks() -> None:
    division = divide(plan_of("FULL_SHARD", 80))
    shape: Any = plan_of("FULL_SHARD", 80).shape
    assert division is not None
    assert sum(division.slice_bytes(rank) for rank in range(WORLD_SIZE)) == 2 * shape.num_parameters
