# SPDX-License-Identifier: Apache-2.0
"""Where the peak of memory cannot be predicted, a plan tells what is needed at least, and what it does not count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import PeftParams, TrainingConfig
from oumi.core.inspect import gather_facts
from oumi.core.plan.facts import Facts
from oumi.core.plan.fitting import with_rows
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.render import plan_json, plan_text
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.shapes import ModelShape
from oumi.core.plan.step_sizes import LargestMicroBatch
from tests.runs import tiny_config

COUNT = 1_000_000_000
LINEAR = {"model.layers.0.mlp.up_proj.weight": (8_000, 100_000), "model.embed_tokens.weight": (2_000, 100_000)}
OTHER_FAMILY = {"shape": None, "num_parameters": COUNT, "matrices": LINEAR, "mixers": {"conv": 3}}
LLAMA = ModelShape("llama", 16, 2048, 32, 8, 64, 8192, 128_256, True)


def planned(config: TrainingConfig, model: dict[str, Any] | None = None, **changes: Any) -> Plan:
    facts: Facts = replace(gather_facts(config), missing=frozenset(), **changes)
    return make_plan(config, replace(facts, model=replace(facts.model, **(model or OTHER_FAMILY))))


def least(plan: Plan) -> MemoryPlan:
    assert plan.memory is None
    assert plan.least_memory is not None
    return plan.least_memory


def test_weights_gradients_and_optimizer_of_another_family_are_held_together(tmp_path: Path) -> None:
    plan = planned(tiny_config(tmp_path))
    memory = least(plan)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * COUNT, 4 * COUNT, 8 * COUNT)
    line = next(line for line in plan_text(plan).splitlines() if line.startswith("  memory"))
    assert "at least 16.5 GB" in line
    assert "without activations, since the layers are of another family (3 x conv)" in line
    assert plan_json(plan)["least_memory"]["total"] == memory.total


def test_frozen_weights_have_neither_gradients_nor_state(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.model.freeze_layers = ["model.embed_tokens"]
    memory = least(planned(config))
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * COUNT, 0, 0)


@pytest.mark.parametrize(("bits", "size"), [(4, 0.5 + 4 / 64), (8, 1)])
def test_linear_layers_alone_are_quantized(tmp_path: Path, bits: int, size: float) -> None:
    config = tiny_config(tmp_path, use_peft=True)
    config.peft = PeftParams(q_lora=True, q_lora_bits=bits, lora_target_modules=["up_proj"], lora_r=4)
    memory = least(planned(config))
    adapter = 4 * 4 * (8_000 + 100_000)
    assert memory.weights == 800_000_000 * size + 4 * 200_000_000 + adapter
    assert (memory.gradients, memory.optimizer) == (adapter, 2 * adapter)


@pytest.mark.parametrize(
    ("training", "copies"),
    [
        ({"trainer_type": "TRL_SFT"}, 1),
        ({"trainer_type": "TRL_ORPO"}, 1),
        ({"trainer_type": "TRL_DPO"}, 2),
        ({"trainer_type": "TRL_KTO"}, 2),
        ({"trainer_type": "TRL_DPO", "trainer_kwargs": {"precompute_ref_log_probs": True}}, 1),
        ({"trainer_type": "TRL_DPO", "use_peft": True}, 1),
        ({"method": "dpo"}, 2),
    ],
)
def test_a_copy_that_is_the_reference_is_counted(tmp_path: Path, training: dict[str, Any], copies: int) -> None:
    memory = least(planned(tiny_config(tmp_path, **training)))
    assert memory.weights // (4 * COUNT) == copies


def test_layers_of_another_trainer_keep_what_is_not_fused_or_padded(tmp_path: Path) -> None:
    plan = planned(tiny_config(tmp_path, trainer_type="TRL_SFT"), {"shape": LLAMA, "num_parameters": None})
    before = least(plan)
    assert before.weights == 4 * LLAMA.num_parameters
    few, many = (
        least(with_rows(plan, 24, lambda _, count=count: LargestMicroBatch(count, 512)))  # type: ignore[misc]
        for count in (512, 64 * 512)
    )
    assert few == before  # less than the gradients, which are freed by then
    assert few.total < many.total
    assert many.gradients == 0
    assert many.activations > 16 * 64 * 512 * 4 * (4 * 8192 + 8 * 2048)
    assert "TRL_SFT" in many.uncounted


def test_more_than_there_is_is_noted(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert not any("memory" in note for note in planned(config, memory_bytes=17 * COUNT * 2).notes)
    (note,) = (note for note in planned(config, memory_bytes=16 * COUNT).notes if "memory" in note)
    assert "16.0 GB" in note


def test_weights_that_are_not_known_are_not_counted(tmp_path: Path) -> None:
    plan = planned(tiny_config(tmp_path), {"shape": None, "num_parameters": None})
    assert plan.least_memory is None
    assert "not known before the run" in plan_text(plan)
