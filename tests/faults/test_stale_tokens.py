# SPDX-License-Identifier: Apache-2.0
"""T40: kept tokens are those of exactly these inputs and this code, whole, whatever happened while they were made."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.data import build as tables_module
from oumi.core.data.store.cache import code_version
from oumi.core.data.training_data import TrainingData, read_training_data
from oumi.core.errors import DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from tests.fork_server import start_python
from tests.runs import tiny_config

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def read(config: TrainingConfig) -> TrainingData:
    return read_training_data(make_plan(config, gather_facts(config)), datetime(2026, 1, 2))


def tables(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("*/table.json"))


def change_a_byte(config: TrainingConfig) -> None:
    path = Path(str(config.data.train.datasets[0].dataset_path))
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Sure?", b"Sore?", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def change_the_vocabulary(config: TrainingConfig) -> None:
    path = Path(config.model.model_name) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer))


def add_a_row(config: TrainingConfig) -> None:
    path = Path(str(config.data.train.datasets[0].dataset_path))
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")


def rename_the_file(config: TrainingConfig) -> None:
    path = Path(str(config.data.train.datasets[0].dataset_path))
    config.data.train.datasets[0].dataset_path = str(path.rename(path.with_name("other.jsonl")))


def add_a_special_token(config: TrainingConfig) -> None:
    config.model.tokenizer_kwargs = {"extra_special_tokens": ["<|new|>"]}


def change_the_own_template(config: TrainingConfig) -> None:
    path = Path(config.model.model_name) / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "helper"))


def set_key(section: str, name: str, value: Any) -> Callable[[TrainingConfig], None]:
    def change(config: TrainingConfig) -> None:
        setattr(config.model if section == "model" else config.data.train, name, value)

    return change


CHANGES: dict[str, tuple[Callable[[TrainingConfig], None], str]] = {
    "a byte": (change_a_byte, "another content of the data"),
    "the vocabulary": (change_the_vocabulary, "another tokenizer"),
    "the template": (set_key("model", "chat_template", "zephyr"), "another chat template"),
    "the length": (set_key("model", "model_max_length", 100), "another model_max_length"),
    "the target": (set_key("data", "train_target", "FINAL_ASSISTANT_TURN"), "another train_target"),
    "the truncation": (set_key("data", "truncation", "LEFT"), "another truncation"),
    "a row more": (add_a_row, "another content of the data"),
    "the file's name": (rename_the_file, "it was not tokenized before"),
    "a special token": (add_a_special_token, "another tokenizer"),
    "the tokenizer's own template": (change_the_own_template, "another chat template"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_whatever_decides_the_tokens_makes_them_anew_and_is_reported(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, reason = CHANGES[kind]
    config = tiny_config(tmp_path)
    before = read(config).fingerprint
    change(config)
    with caplog.at_level(logging.INFO, logger="oumi"):
        assert read(config).fingerprint != before
    assert f".jsonl is tokenized: {reason}" in caplog.text
    assert len(tables(cache)) == 2
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="oumi"):
        read(config)  # the same inputs once more
    assert "is tokenized" not in caplog.text


def test_another_version_of_the_code_makes_the_tokens_anew_but_the_run_stays_the_same(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    before = read(config).fingerprint
    (table,) = tables(cache)
    facts = json.loads((table / "table.json").read_text())
    facts["inputs"]["code"] = "older"
    (table / "table.json").write_text(json.dumps(facts))
    table.rename(table.with_name("key-of-older-code"))
    assert read(config).fingerprint == before
    assert len(tables(cache)) == 2


@pytest.mark.parametrize("harm", ["cut", "missing", "no facts", "broken facts"])
def test_a_table_that_is_not_whole_is_made_anew(tmp_path: Path, cache: Path, harm: str) -> None:
    config = tiny_config(tmp_path)
    expected = [read(config).train[i].tokens.tolist() for i in range(24)]
    (table,) = tables(cache)
    tokens, facts = table / "tokens.bin", table / "table.json"
    if harm == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif harm == "broken facts":
        facts.write_text(facts.read_text()[:50])
    else:
        (tokens if harm == "missing" else facts).unlink()
    again = read(config)
    assert [again.train[i].tokens.tolist() for i in range(24)] == expected


READ = """
import sys
from datetime import datetime
from oumi.core.configs import TrainingConfig
from oumi.core.plan.plan import make_plan
from oumi.core.inspect import gather_facts
from oumi.core.data.training_data import read_training_data
print("ready", flush=True)
config = TrainingConfig.from_yaml(sys.argv[1])
rows = read_training_data(make_plan(config, gather_facts(config)), datetime(2026, 1, 2))
print(len(rows.train), rows.train.lengths().sum(), flush=True)
"""


def test_two_processes_make_one_table_and_both_succeed(tmp_path: Path, cache: Path) -> None:
    config = tiny_config(tmp_path, num_rows=1000)
    config.to_yaml(tmp_path / "c.yaml")
    processes = [start_python("-c", READ, str(tmp_path / "c.yaml")) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(tables(cache)) == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(6))
def test_what_a_killed_process_left_is_never_used(tmp_path: Path, cache: Path, seed: int) -> None:
    config = tiny_config(tmp_path, num_rows=3000)
    process = get_context("fork").Process(target=read, args=(config,))
    process.start()
    while process.is_alive() and not list(cache.glob(".unfinished-*/tokens.bin")):
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    left = list(cache.glob(".unfinished-*"))
    assert bool(left) != bool(tables(cache))  # it was killed while it wrote, or it had finished
    rows = read(config)
    assert len(rows.train) == 3000
    assert rows.ledgers["train"][0].counts.trained == 3000
    assert not list(cache.glob(".unfinished-*"))
    assert len(tables(cache)) == 1


@pytest.mark.slow
def test_another_code_does_not_use_what_this_one_kept(tmp_path: Path, cache: Path) -> None:
    config = tiny_config(tmp_path)
    config.to_yaml(tmp_path / "c.yaml")
    read(config)
    copy = tmp_path / "src"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "oumi/core/data/tokenize/encoder.py").open("a") as file:
        file.write("# another version\n")
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-c", READ, str(tmp_path / "c.yaml")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert len(tables(cache)) == 2
    codes = {json.loads((folder / "table.json").read_text())["inputs"]["code"] for folder in tables(cache)}
    assert len(codes) == 2
    assert code_version() in codes


def test_a_file_that_changes_while_it_is_tokenised_leaves_no_table(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, num_rows=2000)
    path = tmp_path / "chats.jsonl"
    plain = tables_module.chunks_of

    def disturbed(*arguments: Any) -> Iterator[Any]:
        for number, chunk in enumerate(plain(*arguments)):
            if number == 1:
                path.write_text(path.read_text().replace("plus", "and"))
            yield chunk

    monkeypatch.setattr(tables_module, "chunks_of", disturbed)  # the moment at which the file changes
    with pytest.raises(DataError, match=r"chats\.jsonl: the file was changed or removed"):
        read(config)
    assert not tables(cache)
