# SPDX-License-Identifier: Apache-2.0
"""The memory of a rank: its slices, and what is whole for a while."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import PHASES, Case, run_ranks
from oumi.core.configs import TrainingConfig
from oumi.core.plan.division import divide
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.render import plan_text
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.shapes import ModelShape

SHAPE = ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128_256, False)
TABLES = 2 * SHAPE.embedding + SHAPE.hidden
BLOCK = (SHAPE.num_parameters - TABLES) // SHAPE.layers
MODEL = ModelFacts(are_available=True, stored_dtype="bfloat16", shape=SHAPE)
GPU = Facts("cuda", "GPU", True, 8, 80 << 30, 10**15, num_rows=10**6, model=MODEL)
CPU = replace(GPU, device="cpu", device_name="CPU", has_tight_heap=True)


def config_of(training: dict[str, Any] | None = None, **fsdp: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "model": {"model_name": "some/model", "model_max_length": 1024},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {"trainer_type": "OUMI", "output_dir": "out", "per_device_train_batch_size": 1,
                         "gradient_accumulation_steps": 1, **(training or {})},
            "fsdp": {"enable_fsdp": bool(fsdp), **fsdp},
        }
    )  # fmt: skip


def memory(world_size: int, facts: Facts = GPU, config: TrainingConfig | None = None, **fsdp: Any) -> MemoryPlan:
    plan = make_plan(config or config_of(**fsdp), facts, world_size, 8)
    assert plan.memory is not None
    return plan.memory


def test_slices_are_divided_and_the_rest_is_not() -> None:
    single = memory(1)
    for num_ranks in (8, 64):
        rank = memory(num_ranks, sharding_strategy="FULL_SHARD")
        assert rank.weights == pytest.approx(single.weights / num_ranks, rel=1e-6)
        assert rank.optimizer == pytest.approx(single.optimizer / num_ranks, rel=1e-6)
        assert rank.gathered > 2 * TABLES
        assert rank.total < single.total
    copies = memory(64, sharding_strategy="HYBRID_SHARD")
    assert copies == memory(8, sharding_strategy="FULL_SHARD"), "the ranks of a node have one copy"


def test_a_strategy_that_keeps_blocks_gathered_holds_all_of_them() -> None:
    full, gradients = (memory(8, sharding_strategy=name) for name in ("FULL_SHARD", "SHARD_GRAD_OP"))
    assert gradients.gathered - full.gathered > 2 * BLOCK * (SHAPE.layers - 3)


def test_offloaded_slices_are_in_the_memory_of_the_host() -> None:
    plain = memory(8, sharding_strategy="FULL_SHARD")
    offloaded = memory(8, sharding_strategy="FULL_SHARD", cpu_offload=True)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.on_host == pytest.approx(SHAPE.num_parameters * (2 + 2 + 4) / 8, rel=1e-6)
    assert offloaded.total < plain.total
    text = plan_text(make_plan(config_of(sharding_strategy="FULL_SHARD", cpu_offload=True), GPU, 8, 8))
    assert "8.0 GB in the memory of the host" in text


def test_weights_that_are_gathered_narrow_take_half() -> None:
    facts = replace(GPU, model=replace(MODEL, stored_dtype="float32"))
    wide, narrow = (memory(8, facts, sharding_strategy="FULL_SHARD", mixed_precision=kind) for kind in (None, "bf16"))
    assert narrow.weights == wide.weights
    assert narrow.gathered < wide.gathered


def test_autocast_copies_whole_weights() -> None:
    config = config_of({"mixed_precision_dtype": "BF16"}, sharding_strategy="FULL_SHARD")
    rank = memory(8, config=config)
    assert rank.weights == pytest.approx(SHAPE.num_parameters * (4 / 8 + 2), rel=1e-6)
    notes = make_plan(config, GPU, 8, 8).notes
    assert any("16-bit copy of all weights" in note for note in notes)


def test_ranks_with_the_whole_model_sum_gradients_in_buckets() -> None:
    single, rank = memory(1, CPU), memory(2, CPU)
    assert single.gathered == 0
    assert rank.gathered == SHAPE.embedding * 2, "a weight that is larger than a bucket is one of its own"


def test_random_weights_are_whole_while_they_are_drawn() -> None:
    config = config_of({"save_final_model": False, "save_steps": 0}, sharding_strategy="FULL_SHARD")
    config.model.load_pretrained_weights = False
    drawn, loaded = memory(256, CPU, config), memory(256, CPU, sharding_strategy="FULL_SHARD")
    assert drawn.gathered >= SHAPE.num_parameters * 4
    assert loaded.gathered < SHAPE.num_parameters * 4


def test_blocks_that_the_shape_does_not_show_are_not_guessed() -> None:
    plan = make_plan(
        config_of(sharding_strategy="FULL_SHARD", auto_wrap_policy="TRANSFORMER_BASED_WRAP",
                  transformer_layer_cls="LlamaMLP"), GPU, 8, 8,
    )  # fmt: skip
    assert plan.memory is None
    assert divide(plan) is None


def test_blocks_below_the_least_size_are_gathered_with_the_rest() -> None:
    sizes = {"auto_wrap_policy": "SIZE_BASED_WRAP", "sharding_strategy": "FULL_SHARD"}
    small, large = (make_plan(config_of(**sizes, min_num_params=size), GPU, 8, 8) for size in (BLOCK, BLOCK + 10**6))
    divisions = [divide(small), divide(large)]
    assert [division and division.num_blocks for division in divisions] == [SHAPE.layers, 0]
    assert all(division and division.slice_bytes() == divisions[0].slice_bytes() for division in divisions)  # type: ignore[union-attr]
    assert large.memory is not None
    assert small.memory is not None
    assert large.memory.gathered > 4 * small.memory.gathered


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read on Linux")
@pytest.mark.parametrize(
    "case",
    [
        Case("wide", 2, 256, fsdp={}),
        Case("wide", 2, 256, fsdp={"sharding_strategy": "FULL_SHARD"}),
        Case("135m", 2, 256, {"use_peft": True}, fsdp={"sharding_strategy": "FULL_SHARD"}),
        Case("135m", 2, 256, fsdp={"sharding_strategy": "SHARD_GRAD_OP"}),
    ],
    ids=lambda case: case.name,
)
def test_the_prediction_is_what_a_rank_takes(tmp_path: Path, case: Case) -> None:
    _, rank = run_ranks(case, tmp_path)
    assert rank["predicted"] == pytest.approx(max(rank[phase] for phase in PHASES), rel=0.1)
