# SPDX-License-Identifier: Apache-2.0
"""What counts as a difference between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkouts import HERE, check_source
from tests.compare import CONFIGURATIONS, difference_of_records, difference_of_runs, train, write_inputs

LINE = {"step": 1, "loss": 5.25, "grad_norm": float("nan"), "step_time_s": 0.5, "tokens_per_second": 9}


def save_run(folder: Path, weights: dict[str, torch.Tensor], **numbers: Any) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(LINE | numbers) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": folder.name})
    return folder


def test_times_and_speeds_may_differ_and_nan_is_nan(tmp_path: Path) -> None:
    weights = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    old = save_run(tmp_path / "old", weights)
    new = save_run(tmp_path / "new", weights, step_time_s=1.0, tokens_per_second=7, peak_memory_bytes=1)
    assert difference_of_runs(old, new) is None


@pytest.mark.parametrize(
    ("line", "difference"),
    [
        (LINE | {"loss": 5.250000000000001}, "metrics.jsonl line 1: loss 5.25 became 5.250000000000001"),
        (LINE | {"num_tokens": 3}, "metrics.jsonl line 1: num_tokens absent became 3"),
        (LINE | {"step": 1.0}, "metrics.jsonl line 1: step 1 became 1.0"),
    ],
)
def test_any_other_number_is_a_difference(line: dict[str, Any], difference: str) -> None:
    assert difference_of_records([LINE], [line]) == difference


def test_a_missing_line_is_a_difference() -> None:
    assert difference_of_records([LINE], []) == "metrics.jsonl line 1: step 1 became absent"


def test_a_bit_of_a_weight_is_a_difference(tmp_path: Path) -> None:
    old = save_run(tmp_path / "old", {"a": torch.ones(2), "b": torch.tensor([0.0, 1.0])})
    new = save_run(tmp_path / "new", {"a": torch.ones(2), "b": torch.tensor([-0.0, 1.0])})
    assert difference_of_runs(old, new) == "model.safetensors: tensor b differs"


def test_a_checkout_is_run_with_its_own_code(tmp_path: Path) -> None:
    check_source(HERE, tmp_path)
    with pytest.raises(RuntimeError, match="Python imports oumi from"):
        check_source(tmp_path / "nowhere", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_trains(tmp_path: Path, name: str) -> None:
    write_inputs(tmp_path)
    output = train(HERE, CONFIGURATIONS[name](tmp_path), tmp_path / "run", num_steps=2)
    assert difference_of_runs(output, output) is None
