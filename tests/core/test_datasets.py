# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, from files, directories and the user's own code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from oumi.core.configs import DatasetParams
from oumi.core.configs.loading import dump
from oumi.core.datasets import dataset_for
from oumi.core.errors import ConfigError, DataError
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import BadRow, Row
from tests.runs import tiny_config

ROWS = [{"instruction": f"Add {i}.", "input": "", "output": str(i)} for i in range(3)]
MINE = """
from oumi.core.datasets import DATASETS, BaseSftDataset
from oumi.core.types.conversation import Conversation, Message, Role

@DATASETS.register("my/questions")
class MyQuestions(BaseSftDataset):
    def __init__(self, *, mood: str = "kind", **named):
        super().__init__(**named)
        self.mood = mood

    def transform_conversation(self, example):
        answer = f"{example['a']} ({self.mood})"
        return Conversation(messages=[
            Message(role=Role.USER, content=example["q"]), Message(role=Role.ASSISTANT, content=answer),
        ])
"""


def rows_of(**params: Any) -> list[Row | BadRow]:
    return list(dataset_for(DatasetParams(**params)).rows())


def contents(row: Row | BadRow) -> list[str]:
    assert isinstance(row, Row), row
    assert isinstance(row.value, Conversation)
    return [one.content for one in row.value.messages]


@pytest.mark.parametrize("name", ["text_sft", "text_sft_jsonl", "TEXT_SFT", "not/registered"])
def test_a_file_is_read_whatever_the_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    rows = rows_of(dataset_name=name, dataset_path=str(path))
    assert [contents(row) for row in rows] == [[f"Add {i}.", str(i)] for i in range(3)]


def test_a_directory_that_datasets_saved_is_read(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    rows = rows_of(dataset_name="tatsu-lab/alpaca", dataset_path=str(tmp_path / "saved"))
    assert [contents(row)[-1] for row in rows] == ["0", "1", "2"]
    assert [row.source.line for row in rows] == [0, 1, 2]


def test_another_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a directory, but not one that"):
        rows_of(dataset_name="text_sft", dataset_path=str(tmp_path))


def test_a_file_is_asked_for_where_none_is_named() -> None:
    with pytest.raises(ConfigError, match="needs dataset_path"):
        rows_of(dataset_name="text_sft")


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"fromat": "messages"}, "dataset_kwargs.fromat: unknown to data set 'text_sft', did you mean 'format'?"),
        ({"zzz": 1}, "dataset_kwargs.zzz: unknown to data set 'text_sft'; it takes format"),
        ({"format": "sharegtp"}, "dataset_kwargs.format: unknown format 'sharegtp', did you mean 'sharegpt'?"),
    ],
)
def test_an_unknown_argument_is_told_with_the_nearest(tmp_path: Path, kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dataset_for(DatasetParams(dataset_name="text_sft", dataset_path="x.jsonl", dataset_kwargs=kwargs))
    assert str(refused.value) == told


def test_a_row_without_a_column_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"instruction": "Add."}\n')
    good, bad = rows_of(dataset_name="tatsu-lab/alpaca", dataset_path=str(path))
    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert "output" in bad.reason
    assert bad.source.line == 2


def test_a_data_set_of_ones_own_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "extra.txt").write_text(f"{tmp_path / 'mine.py'}\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "Who?", "a": "Me."}\n{"q": "Why?", "a": "So."}\n')
    config = tiny_config(tmp_path, max_steps=1, log_examples=True)
    config.data.train.datasets[0] = DatasetParams(
        dataset_name="my/questions", dataset_path=str(tmp_path / "rows.jsonl"), dataset_kwargs={"mood": "sly"}
    )
    (tmp_path / "config.yaml").write_text(dump(config))
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", str(tmp_path / "extra.txt"))
    command = [sys.executable, "-m", "oumi", "train", "-c", str(tmp_path / "config.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "out" / "logs" / "rank_0000.log").read_text()
    assert "[Me. (sly)<|im_end|>]" in log


@pytest.mark.parametrize(("listing", "told"), [(None, "no file"), ("/no/such/file.py\n", r"no file /no/such/file\.py")])
def test_a_listing_of_ones_own_files_that_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str | None, told: str
) -> None:
    from oumi.core.datasets import import_extra_files

    if listing is not None:
        (tmp_path / "extra.txt").write_text(listing)
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", str(tmp_path / "extra.txt"))
    import_extra_files.cache_clear()
    with pytest.raises(ConfigError, match=told):
        import_extra_files()
