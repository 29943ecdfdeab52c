# SPDX-License-Identifier: Apache-2.0
"""T36: data with no row, or with fewer than a step takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.errors import DataError
from oumi.core.train import train
from tests.faults.test_bad_files import GOOD, break_model, oumi
from tests.runs import losses, tiny_config


def config_of(folder: Path, path: str, **training: Any) -> TrainingConfig:
    """Returns a run on what stands at a path below a folder."""
    config = tiny_config(folder, **training)
    config.data.train.datasets[0].dataset_path = str(folder / path)
    return config


def make(folder: Path, kind: str) -> str:
    """Makes data without a usable row and returns its path."""
    if kind == "an empty directory":
        (folder / "data").mkdir()
        return "data"
    if kind == "a directory without data":
        (folder / "data").mkdir()
        (folder / "data" / "readme.md").write_text("no data")
        return "data"
    content = {"an empty file": b"", "blank lines": b"\n\n \n", "an empty list": b"[]", "a BOM": b"\xef\xbb\xbf"}
    name = "data.json" if kind == "an empty list" else "data.jsonl"
    (folder / name).write_bytes(content.get(kind, b'{"messages": []}\n' * 3))
    return name


EMPTY = {
    "an empty file": "data.jsonl: empty",
    "an empty directory": "data: no data file; expected a name that ends in .jsonl",
    "a directory without data": "data: no data file; expected a name that ends in .jsonl",
    "blank lines": "there are no rows to train on",
    "an empty list": "there are no rows to train on",
    "a BOM": "there are no rows to train on",
    "no usable row": "there are no rows to train on: 3 of 3 rows cannot be used, the first:\n  ",
}


@pytest.mark.parametrize("kind", EMPTY)
def test_data_without_a_row_is_reported_before_the_model_is_loaded(tmp_path: Path, kind: str) -> None:
    config = config_of(tmp_path, make(tmp_path, kind))
    config.data.train.max_rejected_rows = 10
    break_model(tmp_path)
    with pytest.raises(DataError) as stopped:
        train(config)
    assert EMPTY[kind] in str(stopped.value)
    assert str(tmp_path) in str(stopped.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_says_so_with_code_65(tmp_path: Path) -> None:
    config_of(tmp_path, make(tmp_path, "an empty file")).to_yaml(tmp_path / "c.yaml")
    for command in (("train",), ("data", "validate"), ("data", "stats"), ("data", "preview")):
        process = oumi(*command, "-c", str(tmp_path / "c.yaml"))
        assert process.returncode == 65, process.stderr
        assert "data.jsonl: empty" in process.stderr
        assert "Traceback" not in process.stderr


@pytest.mark.sample(3)
@pytest.mark.parametrize("num_rows", [1, 3, 4, 5])
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_fewer_rows_than_a_step_takes_are_all_trained(tmp_path: Path, trainer: str, num_rows: int) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(GOOD.replace(b'"a"', b'"%d"' % i) for i in range(num_rows)))
    config = config_of(tmp_path, "data.jsonl", trainer_type=trainer, logging_steps=1)
    train(config)
    steps_an_epoch = -(-num_rows // 4)  # 2 rows by 2 micro-batches
    assert len(losses(tmp_path / "out")) == 2 * steps_an_epoch
    (report,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"]
    assert report["rows"]["trained"] == report["examples"]["drawn"] == num_rows


def test_a_validation_set_without_a_row_is_reported(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, eval_strategy="epoch")
    (tmp_path / "none.jsonl").write_text("\n")
    config.data.validation.datasets = [
        config.data.train.datasets[0].model_copy(update={"dataset_path": str(tmp_path / "none.jsonl")})
    ]
    with pytest.raises(DataError, match=r"data\.validation: .*none\.jsonl"):
        train(config)
