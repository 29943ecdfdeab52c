# SPDX-License-Identifier: Apache-2.0
"""The comparison on a GPU: its files, counts and tables. Nothing here needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.gpu.__main__ import ARMS, main, table
from benchmarks.gpu.cells import (
    CELLS,
    DATA_SEED,
    LENGTH,
    SHAPES,
    VOCABULARY,
    flops_per_token,
    oumi_config,
    write_rows,
    write_tokenizer,
)
from benchmarks.gpu.runs import NUM_SKIPPED_STEPS, Steps, read_result, run_line
from benchmarks.sft.workload import place_rows
from oumi.core.configs import TrainingConfig
from oumi.core.plan.refusals import refusals
from oumi.core.trainers.native import NativeTrainer
from tests.runs import build
from tests.tiny import tiny_llama


def steps(step_s: float) -> Steps:
    return Steps((9.0,) * NUM_SKIPPED_STEPS + (step_s,) * 2, (3.0,), 2**30)


def test_without_a_gpu_the_requirement_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    main()
    assert "needs an NVIDIA GPU" in capsys.readouterr().out


def test_a_text_fills_a_row_with_its_end(tmp_path: Path) -> None:
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
    for arm in ARMS.values():
        config = oumi_config(CELLS[name], tmp_path, rows, tmp_path / "out", 30, arm.options)
        assert refusals(TrainingConfig.from_str(json.dumps(config))) == []
        assert config["training"]["compile"] == ("compile" in arm.options)


def test_shapes_have_the_weights_of_their_models() -> None:
    shape = SHAPES["llama-3.2-1b"]
    assert shape.layer_products + shape.hidden * 128_256 == pytest.approx(1.236e9, rel=1e-3)
    assert flops_per_token(CELLS["1b"]) == pytest.approx(6 * 1.236e9 + 6 * 16 * 2048 * 4096, rel=1e-3)
    assert flops_per_token(replace(CELLS["8b"], has_lora=True)) < flops_per_token(CELLS["8b"]) * 0.7


def test_the_table_relates_each_arm_to_trl() -> None:
    other = replace(steps(0.1), losses=(3.01,))
    results = {"trl": [steps(2.0)], "oumi": [steps(1.0)], "oumi_compile": "failed: x", "oumi_fp8": [other]}
    lines = table(CELLS["1b"], results, 989e12).splitlines()
    assert lines[2].split()[-5:] == ["16,384", "13.6%", "1.0", "2.00", "0.0e+00"]
    assert lines[3].endswith("failed: x")
    assert lines[4].endswith("rejected: losses differ by 3.3e-03")


def test_without_a_reference_no_difference_is_shown_and_nan_is_rejected() -> None:
    broken = replace(steps(1.0), losses=(float("nan"),))
    alone = table(CELLS["1b"], {"trl": "failed: x", "oumi": [broken]}, 989e12).splitlines()[2]
    beside = table(CELLS["1b"], {"trl": [steps(2.0)], "oumi": [broken]}, 989e12).splitlines()[2]
    assert alone.split()[-2:] == ["-", "-"]
    assert beside.endswith("rejected: losses differ by inf")


def test_each_run_is_printed_as_a_line() -> None:
    assert run_line(CELLS["1b"], steps(2.0)) == "8,192 tokens/s, 1.0 GiB"
    assert run_line(CELLS["1b"], "failed: x") == "failed: x"


def test_rows_are_trained_in_the_order_of_trl(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tiny_llama(vocab_size=VOCABULARY, max_position_embeddings=LENGTH).save_pretrained(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    placed = place_rows(rows, tmp_path / "placed.jsonl", DATA_SEED)
    config = oumi_config(CELLS["1b"], tmp_path, placed, tmp_path / "out", 2, {})
    run = build(TrainingConfig.from_str(json.dumps(config)), NativeTrainer).run
    expected = AutoTokenizer.from_pretrained(tmp_path)(
        [json.loads(row)["text"] for row in rows.read_text().splitlines()]
    )
    documents = [
        document.tolist()
        for _, micro_batches in zip(range(2), run.loader.from_step(0), strict=False)
        for batch in micro_batches
        for document in batch.tokens.split(LENGTH)
    ]
    assert [document[:-1] for document in documents] == expected["input_ids"]


def test_steps_are_the_times_between_marks(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"marks": [5.0, 6.0, 8.0], "losses": [3.0], "peak_bytes": 7}))
    assert read_result(tmp_path / "result.json").walls_s == (0.0, 1.0, 2.0)
