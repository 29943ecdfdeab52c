# SPDX-License-Identifier: Apache-2.0
"""TrainingData are tokenized once: what decides them is in the key, and what was not finished is never used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.data.sources import source as sources
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.training_data import TrainingData, read_training_data
from oumi.core.errors import DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.system.cache import token_cache
from oumi.core.train import train
from tests.runs import losses, tiny_config
from tests.tiny import CHATML

BEGAN = datetime(2026, 1, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any file one that is tokenized by processes of its own: the bound is a setting of the module."""
    monkeypatch.setattr(sources, "_LARGE_BYTES", 1)


def read(config: TrainingConfig, began: datetime = BEGAN) -> TrainingData:
    return read_training_data(make_plan(config, gather_facts(config)), began)


def tables(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("*/table.json"))


def test_the_same_rows_are_tokenised_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path)
    with caplog.at_level(logging.INFO, logger="oumi"):
        first = read(config)
        assert "is tokenized: it was not tokenized before" in caplog.text
        caplog.clear()
        second = read(config)
        assert "tokenized" not in caplog.text
    assert len(tables(cache)) == 1
    assert [first.train[i].tokens.tolist() for i in range(24)] == [second.train[i].tokens.tolist() for i in range(24)]
    assert first.ledgers["train"][0].to_dict() == second.ledgers["train"][0].to_dict()
    assert [str(first.train[i].source) for i in range(24)] == [str(second.train[i].source) for i in range(24)]


def test_a_template_that_states_the_day_has_tokens_of_each_day(tmp_path: Path, cache: Path) -> None:
    config = tiny_config(tmp_path)
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d') }}" + CHATML)
    config.model.chat_template = str(template)
    for began in (BEGAN, BEGAN, datetime(2026, 1, 3)):
        read(config, began)
    assert len(tables(cache)) == 2


@pytest.mark.usefixtures("is_large")
def test_training_while_rows_are_tokenised_is_bitwise_training_after(tmp_path: Path, cache: Path) -> None:
    shape = {"num_train_epochs": 3, "save_steps": 4, "save_final_model": True}
    growing = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "growing"))
    train(growing)
    report = json.loads((tmp_path / "growing" / "data_report.json").read_text())["train"]
    read(growing).close(may_wait=True)
    assert len(tables(cache)) == 1
    kept = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "kept"))
    train(kept)
    assert losses(tmp_path / "growing") == losses(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "data_report.json").read_text())["train"] == report


@pytest.mark.slow  # what is trained meanwhile is that of the test above
@pytest.mark.usefixtures("is_large")
def test_a_table_that_grows_is_the_one_that_is_kept(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    rows = read(config)
    (part,) = rows.train.parts
    assert isinstance(part.table, LazyTable)
    early = [part.table[i] for i in range(24)]
    lengths = part.table.lengths().tolist()
    late = [part.table[i] for i in range(24)]
    assert lengths == [len(example.tokens) for example in early]
    assert [example.tokens.tolist() for example in early] == [example.tokens.tolist() for example in late]
    assert [example.is_target.tolist() for example in early] == [example.is_target.tolist() for example in late]
    assert [example.source for example in early] == [example.source for example in late]


STARTED_ONLY = """
import os, signal, sys
from pathlib import Path
from oumi.core.configs import TrainingConfig
from oumi.core.data.sources import source
from tests.core.data.store.test_cache import read
source._LARGE_BYTES = 1
rows = read(TrainingConfig.from_yaml(sys.argv[1]))
print(rows.train.parts[0].table._build._process.pid, flush=True)
if sys.argv[2] == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exits", "is killed"])
def test_the_process_that_tokenizes_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    tiny_config(tmp_path, num_rows=60_000).to_yaml(tmp_path / "config.yaml")
    command = [sys.executable, "-c", STARTED_ONLY, str(tmp_path / "config.yaml"), end]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    group = int(done.stdout)
    deadline = time.monotonic() + (0 if end == "exits" else 60)
    while is_alive(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(group)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("is_large")
def test_a_bad_row_stops_a_run_that_has_begun(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, num_rows=400, num_train_epochs=50)
    path = tmp_path / "chats.jsonl"
    lines = path.read_text().splitlines()
    lines[101] = "{nope"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"chats\.jsonl:102: not valid JSON"):
        train(config)


@pytest.mark.slow
def test_several_processes_make_the_table_of_one(tmp_path: Path, cache: Path) -> None:
    config = tiny_config(tmp_path, num_rows=3000)
    alone = read(config)
    expected = [alone.train[i].tokens.tolist() for i in range(0, 3000, 7)]
    for table in tables(cache):
        table.rename(table.with_name("aside"))
    config.data.train.datasets[0].transform_num_workers = 2
    config.data.train.max_rejected_rows = 1  # so that the table is waited for
    again = read(config)
    assert [again.train[i].tokens.tolist() for i in range(0, 3000, 7)] == expected
    (aside, new) = sorted(tables(cache), key=lambda path: path.name != "aside")
    for name in ("tokens.bin", "rows.bin"):
        assert (aside / name).read_bytes() == (new / name).read_bytes()


def test_the_cache_is_where_it_is_configured_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_cache() == tmp_path / "cache" / "tokens"
    monkeypatch.delenv("OUMI_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert token_cache() == tmp_path / "xdg" / "oumi" / "tokens"
