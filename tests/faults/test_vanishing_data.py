# SPDX-License-Identifier: Apache-2.0
"""T41: data that changes or goes away while rows of it are trained stops the run, which can go on afterwards."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from oumi.core.data.sources import source as sources
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.training_data import read_training_data
from oumi.core.errors import DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from tests.runs import losses, tiny_config


@pytest.fixture(autouse=True)
def is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any file one that is trained while it is tokenized: the bound is a setting of the module."""
    monkeypatch.setattr(sources, "_LARGE_BYTES", 1)
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))


def change_a_row(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 20)
        file.write(b"x")


def add_a_row(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0] + b"\n")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes().replace(b"plus", b"and"))
    other.replace(path)


HARMS = [change_a_row, add_a_row, cut, replace, Path.unlink]


@pytest.mark.parametrize("harm", HARMS)
def test_a_row_of_a_changed_file_is_never_used(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    config = tiny_config(tmp_path)
    rows = read_training_data(make_plan(config, gather_facts(config)), datetime(2026, 1, 2))
    table = rows.train.parts[0].table
    assert isinstance(table, LazyTable)
    assert len(table[3].tokens)
    time.sleep(0.01)  # a clock tick of the file system
    harm(tmp_path / "chats.jsonl")
    with pytest.raises(DataError, match=r"chats\.jsonl:5: the file was changed or removed"):
        table[4]
    table._build.stop()


@pytest.mark.sample(1)
@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_run_stops_with_the_path_and_goes_on_when_the_data_is_back(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    shape = {"num_rows": 120, "num_train_epochs": 2, "save_steps": 4, "save_total_limit": 2, "logging_steps": 1}
    config = tiny_config(tmp_path, **shape, try_resume_from_last_checkpoint=True)
    path, good = tmp_path / "chats.jsonl", tmp_path / "good"
    shutil.copy2(path, good)

    def disturb() -> None:
        metrics = tmp_path / "out" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 8:
            time.sleep(0.01)
        harm(path)

    thread = threading.Thread(target=disturb)
    thread.start()
    with pytest.raises(DataError) as stopped:
        train(config)
    thread.join()
    assert stopped.value.exit_code == 65
    assert re.search(rf"{re.escape(str(path))}:\d+: the file was changed or removed", str(stopped.value))
    assert list((tmp_path / "out").glob("checkpoint-*"))
    before = len(losses(tmp_path / "out"))
    assert 8 <= before < 60
    shutil.copy2(good, path)
    train(config)
    assert len(losses(tmp_path / "out")) == 60


def test_a_file_that_is_changed_between_two_runs_is_told(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_train_epochs=2, save_steps=2, try_resume_from_last_checkpoint=True)
    train(config)
    change_a_row(tmp_path / "chats.jsonl")
    with pytest.raises(DataError, match=r"was trained on other rows|cannot be used"):
        train(config)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_that_goes_away_before_the_rows_are_read_is_told(tmp_path: Path, split: str) -> None:
    config = tiny_config(tmp_path, eval_strategy="epoch")
    path = shutil.copy2(tmp_path / "chats.jsonl", tmp_path / "other.jsonl")
    params = config.data.train.datasets[0].model_copy(update={"dataset_path": str(path)})
    config.data.validation.datasets = [params]
    plan = make_plan(config, gather_facts(config))
    gone = tmp_path / "chats.jsonl" if split == "train" else path
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name}: no such file"):
        read_training_data(plan, datetime(2026, 1, 2))
