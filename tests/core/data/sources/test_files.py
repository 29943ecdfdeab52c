# SPDX-License-Identifier: Apache-2.0
"""Which files a path names, and that none of them is left out without a word."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.data.sources.files import files_of
from oumi.core.data.sources.source import open_source
from oumi.core.errors import ConfigError, DataError
from oumi.core.plan.refusals import check
from tests.runs import tiny_config


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))


def names_of(folder: Path, path: str, split: str = "train") -> list[str]:
    return [str(file.relative_to(folder)) for file in files_of(folder / path, split)]


PATTERNS = {
    "*.jsonl": ["a.jsonl", "b.jsonl"],
    "**/*.jsonl": ["a.jsonl", "b.jsonl", "deep/x/c.jsonl", "run1/e.jsonl", "run[1]/d.jsonl", "run[1]/s[ab].jsonl"],
    "[ab].jsonl": ["a.jsonl", "b.jsonl"],
    "?.jsonl": ["a.jsonl", "b.jsonl"],
    "deep/**/*.jsonl": ["deep/x/c.jsonl"],
    "run[1]/*.jsonl": ["run[1]/d.jsonl", "run[1]/s[ab].jsonl"],
    "run[1]/d.jsonl": ["run[1]/d.jsonl"],
    "run[1]/s[ab].jsonl": ["run[1]/s[ab].jsonl"],
    "run[1]/[d].jsonl": ["run[1]/d.jsonl"],
    "run[1]": ["run[1]/d.jsonl", "run[1]/s[ab].jsonl"],
    ".hidden/*.jsonl": [".hidden/h.jsonl"],
    "run[12]/*.jsonl": ["run1/e.jsonl"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_as_in_a_shell_and_what_exists_is_taken_by_its_name(tmp_path: Path, pattern: str) -> None:
    put(tmp_path, *PATTERNS["**/*.jsonl"], "._a.jsonl", ".hidden/h.jsonl")
    assert names_of(tmp_path, pattern) == PATTERNS[pattern]
    config = tiny_config(tmp_path / "run")
    config.data.train.datasets[0].dataset_path = str(tmp_path / pattern)
    check(config)


def test_a_directory_is_read_with_linked_folders_once_and_without_hidden_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        "data/a.jsonl",
        "data/._a.jsonl",
        "data/.ipynb_checkpoints/a.jsonl",
        "data/b.json.gz",
        "data/README.md",
    )
    put(tmp_path, "elsewhere/c.jsonl")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "d.jsonl").symlink_to(tmp_path / "elsewhere" / "c.jsonl")
    (tmp_path / "data" / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    assert names_of(tmp_path, "data") == ["data/a.jsonl", "data/b.json.gz", "data/d.jsonl", "data/linked/c.jsonl"]


def test_files_that_name_no_split_are_read_together_or_named_as_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "oumi")
    put(tmp_path, "cooking.jsonl", "gardens.jsonl")
    assert len(names_of(tmp_path, "")) == 2
    assert not caplog.text
    assert len(names_of(tmp_path, "", "test")) == 2
    assert "no file name contains a split, so all files are read for split 'test'" in caplog.text
    caplog.clear()
    put(tmp_path, "train_journeys.jsonl", "test_kitchen.jsonl")
    for _ in range(2):
        assert names_of(tmp_path, "") == ["train_journeys.jsonl"]
    assert caplog.text.count("2 of 4 files are left out") == 1
    assert "cooking.jsonl, gardens.jsonl" in caplog.text
    with pytest.raises(DataError, match="no file of split 'custom'; the file names contain test, train"):
        names_of(tmp_path, "", "custom")


def test_files_of_formats_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "oumi")
    put(tmp_path, "a.jsonl", "b.ndjson", "c.jsonl.xz", "d.arrow", "part-0001", "README.md", "LICENSE", "x.py")
    assert names_of(tmp_path, "") == ["a.jsonl"]
    assert (
        "4 of 8 files are left out, since their formats are not read: b.ndjson, c.jsonl.xz, d.arrow, p" in caplog.text
    )


@pytest.mark.parametrize("split", ["train[:3]", "train[10%:]", "train+test", "train[:1]+test[:1]"])
@pytest.mark.parametrize("kind", ["file", "directory", "pattern", "saved"])
def test_a_part_of_a_local_split_is_refused(tmp_path: Path, kind: str, split: str) -> None:
    put(tmp_path, "data/train.jsonl")
    path = {"file": "data/train.jsonl", "directory": "data", "pattern": "data/*", "saved": "saved"}[kind]
    if kind == "saved":
        put(tmp_path, "saved/dataset_info.json")
    config: TrainingConfig = tiny_config(tmp_path / "run")
    config.data.train.datasets[0].dataset_path = str(tmp_path / path)
    config.data.train.datasets[0].split = split
    with pytest.raises(ConfigError, match=r"data\.train\.datasets\[0\]\.split: '.*': parts of local data"):
        check(config)
    with pytest.raises(DataError, match="parts of local data are not supported"):
        open_source("text", tmp_path / path, split=split)
