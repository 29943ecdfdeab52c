# SPDX-License-Identifier: Apache-2.0
"""The comparison on several GPUs: its arms, plans and tables. Nothing here needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.cells import CELLS, LENGTH, SHAPES, VOCABULARY, oumi_config, write_rows
from benchmarks.gpu.ranks import ARMS, gpus_of, left_out, main, parse_options, report, row_of
from benchmarks.gpu.runs import NUM_SKIPPED_STEPS, Steps, read_metrics, reason
from oumi.core.configs import TrainingConfig
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.shapes import shape_of

GIB = 1 << 30
MEMORY = {"NVIDIA H100 80GB HBM3": 79 * GIB, "NVIDIA H200": 140 * GIB}


def steps(step_s: float, *peaks_gib: float, loss: float = 3.0, planned_gib: float | None = None) -> Steps:
    peaks = tuple(int(peak * GIB) for peak in peaks_gib)
    planned = None if planned_gib is None else int(planned_gib * GIB)
    walls = (9.0,) * NUM_SKIPPED_STEPS + (step_s,) * 2
    return Steps(walls, (loss,), peaks[0], peaks if len(peaks) > 1 else (), planned)


def facts(device_name: str, shape_name: str) -> Facts:
    shape = SHAPES[shape_name]
    config = {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.intermediate,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": shape.is_tied,
    }
    model = ModelFacts(are_available=True, stored_dtype="bfloat16", max_positions=131_072, shape=shape_of(config))
    return Facts("cuda", device_name, True, 8, MEMORY[device_name], 1 << 40, has_fp8=True, model=model)


def test_without_two_gpus_the_requirement_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.device_count() > 1:
        pytest.skip("there are GPUs")
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu.ranks"])
    main()
    assert capsys.readouterr().out.startswith("benchmarks.gpu.ranks needs two NVIDIA GPUs or more")


@pytest.mark.parametrize("device_name", MEMORY)
@pytest.mark.parametrize("cell_name", CELLS)
def test_every_arm_is_planned_as_its_title_says(cell_name: str, device_name: str, tmp_path: Path) -> None:
    cell, rows = CELLS[cell_name], write_rows(tmp_path / "rows.jsonl", 1)
    for name, arm in ARMS.items():
        if not arm.is_ours:
            continue
        config = TrainingConfig.from_str(
            json.dumps(oumi_config(cell, tmp_path, rows, tmp_path / "out", 30, arm.options))
        )
        assert refusals(config) == []
        count = gpus_of(name, 8)
        plan = make_plan(config, facts(device_name, cell.shape), count, count)
        assert plan.steps.rows_per_step == cell.rows * count
        assert plan.memory is not None
        assert plan.speed.compile == ("compile" in name)
        assert (plan.gradient_checkpointing is not None) == (cell.recomputes or "recompute" in name)
        assert (plan.sharding is None) == arm.has_whole_model
        if plan.sharding is not None:
            assert plan.sharding.num_shards == 8
            assert plan.sharding.frees_after_forward == (name != "shard_grad_op")
            assert plan.sharding.gathers_ahead_in_forward == ("prefetch" in name)
            assert plan.sharding.offload == (name == "offload")


def test_an_arm_is_compared_with_one_gpu_that_does_the_same() -> None:
    same = ("compile", "recomputes", "use_liger_kernel")
    for arm in ARMS.values():
        base = ARMS[arm.base] if arm.base else arm
        assert base.base is None
        assert base.is_ours == arm.is_ours
        assert [key in base.options for key in same] == [key in arm.options for key in same]
    assert (gpus_of("one", 4), gpus_of("ddp", 4)) == (1, 4)


def test_arms_that_do_not_fit_or_repeat_others_are_left_out() -> None:
    reasons = left_out(CELLS["8b"], list(ARMS), 79 * GIB)
    assert reasons["ddp"] == "needs about 100 GiB on each GPU"
    assert reasons["full_shard_recompute"] == "all arms of this table compute all layers again"
    assert "full_shard" not in reasons
    assert "trl_fsdp2" not in reasons
    assert left_out(CELLS["1b"], list(ARMS), 79 * GIB) == {}


def test_the_table_shows_efficiency_and_memory_of_each_rank() -> None:
    cell = CELLS["1b"]
    results: dict[str, list[Steps] | str] = {
        "trl_ddp": [steps(1.0, 30, 30)],
        "one": [steps(0.8, 35.3, loss=2.0, planned_gib=35.8)],
        "full_shard": [steps(1.0, 20, 21, planned_gib=20.5), steps(1.0, 22, 23, planned_gib=20.5)],
        "shard_grad_op": [steps(1.0, 20, 21, loss=3.1)],
        "offload": "failed: torch.OutOfMemoryError: a | b\nmore",
    }
    rows = {name: row_of(cell, name, results, 2, 989e12) for name in results}
    lines = report(cell, rows, "2 x GPU", {"ddp": "needs more"}).splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    tokens = f"{2 * cell.rows * LENGTH:,}"
    assert table[2] == ["the same, DDP", "2", tokens, "13.6%", "-", "30.0, 30.0", "-", "0.0e+00"]
    assert table[3][1:] == ["1", "20,480", "17.0%", "-", "35.3", "35.8", "0.0e+00"]
    assert table[4][1:] == ["2", tokens, "13.6%", "80.0%", "21.0, 22.0", "20.5", "0.0e+00"]
    assert table[5][2] == "rejected: losses differ by 3.3e-02"
    assert table[6][2] == "failed: torch.OutOfMemoryError: a / b more"
    assert {len(cells) for cells in table} == {8}
    assert lines[-1] == "- not run: DDP: needs more"


def test_a_failure_names_the_error_and_not_that_of_the_launcher() -> None:
    output = (
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried\n"
        "E1129 torch/distributed/elastic failed (exitcode: 1)\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====\ntrain.py FAILED\n"
    )
    assert reason(output) == "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried"
    assert reason("Error: training.fsdp: unknown\n") == "Error: training.fsdp: unknown"
    assert reason("a\nb\nc\nd") == "b\nc\nd"


def test_the_planned_peak_is_read_from_the_plan_of_the_run(tmp_path: Path) -> None:
    record = {"step_time_s": 1.0, "loss": 3.0, "peak_memory_bytes": 7}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "plan.json").write_text(json.dumps({"memory": {"total": 8}}))
    assert read_metrics(tmp_path) == Steps((1.0,), (3.0,), 7, planned_bytes=8)
    (tmp_path / "plan.json").write_text(json.dumps({"memory": None}))
    assert read_metrics(tmp_path) == replace(read_metrics(tmp_path), planned_bytes=None)


def test_options_refuse_a_single_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(["--gpus", "4"]).gpus == 4
    assert parse_options([]).arms == list(ARMS)
    for words in (["--gpus", "1"], ["--arms", "oumi"], ["--cells", "7b"]):
        with pytest.raises(SystemExit):
            parse_options(words)
    assert "--gpus: expected a number > 1, got 1" in capsys.readouterr().err
