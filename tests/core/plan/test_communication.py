# SPDX-License-Identifier: Apache-2.0
"""What the plan says that ranks send is what they send."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.plan.communication import Communication, plan_communication
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.render import plan_json, plan_text
from oumi.core.plan.shapes import ModelShape
from oumi.core.system.devices import DEVICES
from tests.laws.test_preference import dpo_config
from tests.ranks import free_port, run_ranks
from tests.runs import tiny_config

DRIVER = Path(__file__).with_name("communication_driver.py")
LLAMA_8B = ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128_256, False)
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "replicated": ({}, {}),
    "full": ({"sharding_strategy": "FULL_SHARD"}, {}),
    "gradients": ({"sharding_strategy": "SHARD_GRAD_OP"}, {}),
    "recomputed": ({"sharding_strategy": "FULL_SHARD"}, {"enable_gradient_checkpointing": True}),
    "adapter": ({"sharding_strategy": "FULL_SHARD"}, {"use_peft": True}),
    "pairs": ({"sharding_strategy": "FULL_SHARD"}, {"use_peft": True}),
}
"""Arguments of `fsdp` and of `training`."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns for each run what its plan predicts, and the sizes of the collective operations of its step."""
    folder = tmp_path_factory.mktemp("communication")
    names = []
    for name, (fsdp, training) in RUNS.items():
        (folder / name).mkdir()
        configure = dpo_config if name == "pairs" else tiny_config
        config = configure(folder / name, max_steps=1, **{"gradient_accumulation_steps": 2, **training})
        config.fsdp = config.fsdp.model_validate({"enable_fsdp": bool(fsdp), **fsdp})
        config.to_yaml(folder / f"{name}.yaml")
        names.append(f"{free_port()}:{folder / name}.yaml")
    (code, text), (other, silence) = run_ranks(2, str(DRIVER), *names, folder=Path(__file__).parents[3])
    assert (code, other) == (0, 0), text + silence
    lines = [line for line in text.splitlines() if line.startswith('{"sent"')]
    return dict(zip(RUNS, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_send_what_the_plan_says(measured: dict[str, Any], name: str) -> None:
    run = measured[name]
    # Of two ranks, each sends half of what is gathered or scattered, and twice half of what is summed.
    sent = {"gathered_bytes": run["gather"] / 2, "reduced_bytes": run["scatter"] / 2 + run["sum"]}
    assert sent["gathered_bytes"] == run["sent"]["gathered_bytes"]
    # Counts and losses are summed, too: a few bytes.
    assert sent["reduced_bytes"] == pytest.approx(run["sent"]["reduced_bytes"], abs=200)
    assert run["sent"]["between_copies_bytes"] == 0


def plan_of(world_size: int, ranks_per_node: int = 8, device: str = "h100-80gb", **fsdp: Any) -> Plan:
    """Returns the plan of an 8B model."""
    machine = DEVICES[device]
    config = TrainingConfig.model_validate(
        {
            "model": {"model_name": "some/model", "model_max_length": 4096},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {"trainer_type": "OUMI", "output_dir": "out", "gradient_accumulation_steps": 2},
            "fsdp": {"enable_fsdp": bool(fsdp), **fsdp},
        }
    )
    model = ModelFacts(are_available=True, stored_dtype="bfloat16", shape=LLAMA_8B)
    facts = Facts("cuda", machine.name, True, 8, machine.memory_bytes, 10**15, num_rows=10**6, model=model)
    return make_plan(config, facts, world_size, ranks_per_node)


def sent_by(plan: Plan) -> Communication:
    sent = plan_communication(plan)
    assert sent is not None
    return sent


def test_ranks_with_the_whole_model_send_gradients_once_a_step() -> None:
    sent = sent_by(plan_of(8))
    assert sent.gathered_bytes == sent.between_copies_bytes == 0
    assert sent.reduced_bytes == pytest.approx(2 * 7 / 8 * LLAMA_8B.num_parameters * 2)


def test_a_divided_model_is_gathered_and_reduced_for_each_micro_batch() -> None:
    size = LLAMA_8B.num_parameters * 2
    tables = (2 * LLAMA_8B.embedding + LLAMA_8B.hidden) * 2
    full, gradients = (
        sent_by(plan_of(8, sharding_strategy="FULL_SHARD")),
        sent_by(plan_of(8, sharding_strategy="SHARD_GRAD_OP")),
    )
    assert full.gathered_bytes == pytest.approx(2 * 7 / 8 * (2 * size - tables))
    assert gradients.gathered_bytes == pytest.approx(2 * 7 / 8 * size)
    # Gradients of bfloat16 weights are summed in float32.
    assert full.reduced_bytes == gradients.reduced_bytes == pytest.approx(2 * 7 / 8 * 2 * size)


def test_copies_exchange_their_slices_over_the_network() -> None:
    sent = sent_by(plan_of(64, sharding_strategy="HYBRID_SHARD"))
    single = sent_by(plan_of(8, sharding_strategy="FULL_SHARD"))
    assert (sent.gathered_bytes, sent.reduced_bytes) == (single.gathered_bytes, single.reduced_bytes)
    assert sent.between_copies_bytes == pytest.approx(2 * 2 * 7 / 8 * LLAMA_8B.num_parameters * 4 / 8, rel=1e-6)
    assert sent.seconds == pytest.approx(single.total_bytes / 450e9 + sent.between_copies_bytes / 50e9)


def test_time_depends_on_the_slowest_part_of_the_way() -> None:
    within, between = (sent_by(plan_of(size, sharding_strategy="FULL_SHARD")) for size in (8, 16))
    assert within.seconds == pytest.approx(within.total_bytes / 450e9)
    assert between.seconds == pytest.approx(between.total_bytes / (8 * 50e9))
    slow = sent_by(plan_of(16, 1, sharding_strategy="FULL_SHARD"))
    assert slow.seconds == pytest.approx(slow.total_bytes / 50e9)
    assert within.share is not None
    assert 0 < within.share < sent_by(plan_of(8, device="l40s", sharding_strategy="FULL_SHARD")).share < 1  # type: ignore[operator]


def test_the_time_of_a_device_that_is_not_in_the_table_is_left_out() -> None:
    plan = replace(plan_of(8), device_name="some GPU")
    sent = sent_by(plan)
    assert (sent.seconds, sent.compute_seconds, sent.share) == (None, None, None)
    assert "assumed" not in plan_text(plan)
    assert "GB by each rank in a step: gradients" in plan_text(plan)


@pytest.mark.parametrize("changes", [{"steps": 1}, {"shape": None}, {"trainer": "TRL_SFT"}])
def test_nothing_is_reported_that_cannot_be_counted(changes: dict[str, Any]) -> None:
    plan = plan_of(8)
    plan = replace(plan, steps=replace(plan.steps, world_size=1)) if "steps" in changes else replace(plan, **changes)
    assert plan_communication(plan) is None
    assert "communication" not in plan_json(plan)
    assert "  sent  " not in plan_text(plan)


def test_a_plan_shows_what_it_assumes() -> None:
    text = plan_text(plan_of(64, sharding_strategy="HYBRID_SHARD"))
    assert "64 on 8 nodes of 8, each of 8 copies of the model divided over 8" in text
    assert "8 x NVIDIA H100 80GB HBM3 a node, NVLink 450 GB/s each way, 400 Gb/s a GPU between nodes" in text
    assert "40% of 989 TFLOP/s" in text
