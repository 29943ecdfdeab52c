# SPDX-License-Identifier: Apache-2.0
"""A process knows its place among the others, or says what is wrong with what it was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.distributed.world import World, determinism_restored, seed_everything
from oumi.core.errors import ConfigError
from oumi.core.train import train
from tests.runs import tiny_config


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_place_that_is_no_number_is_reported(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "abc")
    with pytest.raises(ConfigError, match=f"{name} is 'abc' in the environment"), World.start():
        pass


def test_a_place_that_cannot_be_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    missing = "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"
    with pytest.raises(ConfigError, match=f"WORLD_SIZE is 2 .* {missing}"), World.start():
        pass
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match=r"RANK is 2 .* below WORLD_SIZE, 2"), World.start():
        pass


@pytest.mark.parametrize("text", ["", "1"])
def test_one_process_is_the_whole_world(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)  # job scripts leave variables empty
    with World.start() as world:
        assert (world.rank, world.size) == (0, 1)


def test_threads_add_the_gradients_of_repeated_rows_in_one_order_on_a_cpu() -> None:
    rows, factors = torch.arange(600) % 4, torch.randn(600, 1024)
    table = torch.randn(4, 1024, requires_grad=True)

    def num_results() -> int:
        gradients = (torch.autograd.grad((table[rows] * factors).sum(), table)[0] for _ in range(20))
        return len({gradient.numpy().tobytes() for gradient in gradients})

    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with determinism_restored():
            seed_everything(0, deterministic=False, device="cpu")
            assert num_results() == 1
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("is_on", [False, True])
def test_a_run_leaves_the_choice_of_operations_to_the_code_after_it(tmp_path: Path, is_on: bool) -> None:
    def settings() -> tuple[bool, ...]:
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, torch.is_deterministic_algorithms_warn_only_enabled(), memory.fill_uninitialized_memory

    memory: Any = torch.utils.deterministic
    with determinism_restored():
        torch.use_deterministic_algorithms(is_on)
        memory.fill_uninitialized_memory = True
        before = settings()
        train(tiny_config(tmp_path, num_rows=4, max_steps=1, save_final_model=False))
        assert settings() == before
