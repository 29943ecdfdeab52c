# SPDX-License-Identifier: Apache-2.0
"""A process knows its place among the others, or says what is wrong with what it was told."""

from __future__ import annotations

import pytest

from oumi.core.distributed.world import World
from oumi.core.errors import ConfigError


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
