# SPDX-License-Identifier: Apache-2.0
"""Compiled layers give the same losses, and are compiled once, whatever the length of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from oumi.core.errors import ConfigError
from oumi.core.models.compiled import compile_layers
from oumi.core.train import train
from tests.runs import tiny_config


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "recompute",
    [
        {},
        {"enable_gradient_checkpointing": True},
        {"enable_gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"recompute_num_layers": 1}},
    ],
)
def test_compiled_layers_train_as_plain_ones_and_are_not_compiled_again(
    tmp_path: Path, recompute: dict[str, Any]
) -> None:
    found = []
    for name, compiled in (("plain", {}), ("compiled", {"compile": True, **recompute})):
        torch._dynamo.reset()
        counters.clear()
        train(tiny_config(tmp_path, max_steps=8, output_dir=str(tmp_path / name), **compiled))
        found.append(losses(tmp_path / name))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    # Before and after attention, and what stands around; twice where a first batch has one document.
    assert 1 <= counters["stats"]["unique_graphs"] <= 8
    assert not counters["recompile_limit"]


def test_a_model_without_known_layers_is_refused() -> None:
    class Bare(torch.nn.Module):
        _no_split_modules = None

        class config:  # noqa: N801  as transformers calls it
            model_type = "bare"

        def get_decoder(self) -> torch.nn.Module:
            return self

    with pytest.raises(ConfigError, match=r"training\.compile: bare does not say what its layers are"):
        compile_layers(Bare())
