# SPDX-License-Identifier: Apache-2.0
"""The comparison on a GPU counts and says what it should; what needs the GPU itself is not tried here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import NUM_SKIPPED_STEPS, Steps, main, read_result, table
from benchmarks.gpu.cells import CELLS, LENGTH, SHAPES, flops_per_token, oumi_config, write_rows, write_tokenizer
from oumi.core.configs import TrainingConfig
from oumi.core.plan.refusals import refusals


def steps(step_s: float) -> Steps:
    return Steps((9.0,) * NUM_SKIPPED_STEPS + (step_s,) * 2, (3.0,), 2**30)


def test_without_a_gpu_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    main()
    assert "needs one NVIDIA GPU" in capsys.readouterr().out


def test_a_text_fills_a_row_with_its_end(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", 2).read_text().splitlines()
    for row in rows:
        tokens = tokenizer(json.loads(row)["text"] + tokenizer.eos_token)["input_ids"]
        assert len(tokens) == LENGTH
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.pad_token_id not in tokens


@pytest.mark.parametrize("name", CELLS)
def test_nothing_of_the_config_is_refused(name: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    config = oumi_config(CELLS[name], tmp_path, rows, tmp_path / "out", 30, {})
    assert refusals(TrainingConfig.from_str(json.dumps(config))) == []


def test_weights_are_those_of_the_models_named() -> None:
    shape = SHAPES["llama-3.2-1b"]
    assert shape.layer_products + shape.hidden * 128_256 == pytest.approx(1.236e9, rel=1e-3)
    assert flops_per_token(CELLS["1b"]) == pytest.approx(6 * 1.236e9 + 6 * 16 * 2048 * 4096, rel=1e-3)
    assert flops_per_token(replace(CELLS["8b"], has_lora=True)) < flops_per_token(CELLS["8b"]) * 0.7


def test_the_table_relates_each_arm_to_trl() -> None:
    lines = table(CELLS["1b"], {"trl": [steps(2.0)], "oumi": [steps(1.0)], "oumi_compile": "failed: x"}, 989e12)
    told = lines.splitlines()
    assert told[2].split()[-5:] == ["16,384", "13.6%", "1.0", "2.00", "3.0000"]
    assert told[3].endswith("failed: x")


def test_steps_lie_between_the_marks(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"marks": [5.0, 6.0, 8.0], "losses": [3.0], "peak_bytes": 7}))
    assert read_result(tmp_path / "result.json").walls_s == (0.0, 1.0, 2.0)
