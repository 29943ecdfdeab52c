# SPDX-License-Identifier: Apache-2.0
"""The documented commands for several processes, with a shipped recipe and the real clients of the Hub."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.hub_server import MODEL, HubServer

pytestmark = pytest.mark.xdist_group("hub")

COMMAND = "distributed torchrun -m oumi train -c configs/recipes/llama3_2/sft/3b_full/train.yaml"
SHARDED = "--fsdp.enable_fsdp true --fsdp.sharding_strategy FULL_SHARD"
SHORT = (
    "--training.max_steps 2 --training.gradient_accumulation_steps 1 --data.train.datasets[0].sample_count 64 "
    "--training.warmup_ratio 0 --training.logging_steps 1 --model.model_max_length 512"
)


@pytest.mark.parametrize("sharding", [SHARDED, pytest.param("", marks=pytest.mark.slow)], ids=["sharded", "whole"])
def test_a_recipe_trains_on_two_ranks(
    python: Callable[..., subprocess.CompletedProcess[str]],
    hub: HubServer,
    tmp_path: Path,
    sharding: str,
) -> None:
    name = "meta-llama/Llama-3.2-3B-Instruct"
    if not hub.folder("models", name).exists():
        shutil.copytree(hub.folder("models", MODEL), hub.folder("models", name))
    result = python("-m", "oumi", *COMMAND.split(), *sharding.split(), *SHORT.split(), PET_NPROC_PER_NODE="2")
    assert result.returncode == 0, result.stdout + result.stderr
    output = tmp_path / "work" / "output" / "llama3b.full"
    plan = json.loads((output / "plan.json").read_text())
    assert plan["steps"]["world_size"] == 2
    assert (plan["sharding"] or {}).get("num_shards") == (2 if sharding else None)
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "loss" in step] == [1, 2]
    with safe_open(output / "model.safetensors", framework="pt") as weights:
        assert "model.layers.0.self_attn.q_proj.weight" in weights.keys()  # noqa: SIM118  # not a dict
    assert result.stderr.count("Plan\n") == 1, "only the main rank prints"
