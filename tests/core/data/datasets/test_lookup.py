# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, from files, directories and the user's own code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from oumi.core.configs import DatasetParams
from oumi.core.configs.loading import dump
from oumi.core.datasets import DATASETS, BaseSftDataset, dataset_for
from oumi.core.errors import ConfigError, DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.types.conversation import Conversation, Message
from oumi.core.types.example import RejectedRow, Row
from tests.fork_server import run_python
from tests.hub_server import HubServer
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


def rows_of(**params: Any) -> list[Row | RejectedRow]:
    return list(dataset_for(DatasetParams(**params)).rows())


def contents(row: Row | RejectedRow) -> list[str]:
    assert isinstance(row, Row), row
    assert isinstance(row.value, Conversation)
    return [message.content for message in row.value.messages]


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


def test_of_splits_that_datasets_saved_together_the_named_one_is_read(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    named = {"dataset_name": "text_sft", "dataset_path": str(tmp_path / "saved")}
    assert len(rows_of(**named)) == 3
    assert len(rows_of(**named, split="test")) == 1
    with pytest.raises(DataError, match="saved: unknown split 'tset', did you mean 'test'"):
        rows_of(**named, split="tset")


def test_another_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file; expected a name that ends in"):
        rows_of(dataset_name="text_sft", dataset_path=str(tmp_path))


def test_a_file_is_requested_where_none_is_named() -> None:
    with pytest.raises(ConfigError, match="needs dataset_path"):
        rows_of(dataset_name="text_sft")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fromat": "messages"}, "dataset_kwargs.fromat: unknown to data set 'text_sft', did you mean 'format'?"),
        ({"zzz": 1}, "dataset_kwargs.zzz: unknown to data set 'text_sft'; it takes assistant_only, "),
        ({"format": "sharegtp"}, "dataset_kwargs.format: unknown format 'sharegtp', did you mean 'sharegpt'?"),
    ],
)
def test_an_unknown_argument_is_reported_with_the_nearest(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        dataset_for(DatasetParams(dataset_name="text_sft", dataset_path="x.jsonl", dataset_kwargs=kwargs))
    assert str(refused.value).startswith(message)


def test_a_row_without_a_column_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"instruction": "Add."}\n')
    good, bad = rows_of(dataset_name="tatsu-lab/alpaca", dataset_path=str(path))
    assert isinstance(good, Row)
    assert isinstance(bad, RejectedRow)
    assert "output" in bad.reason
    assert bad.source.line == 2


class Odd(BaseSftDataset):
    """What may go wrong in a data set of one's own."""

    def __init__(self, way: str = "", **named: Any) -> None:
        super().__init__(**named)
        self.way = way

    def transform_conversation(self, example: Any) -> Any:
        ways = {
            "none": lambda: None,
            "silent": self._raise,
            "role": lambda: Message(role="usr", content="x"),  # type: ignore[arg-type]
            "missing": lambda: example["question"],
            "type": lambda: example["a"] + "x",
        }
        return ways[self.way]()

    def _raise(self) -> None:
        raise ValueError


DATASETS.register("tests/odd")(Odd)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("none", "transform_conversation returned NoneType, not a Conversation"),
        ("silent", "ValueError"),
        ("role", "role: Input should be 'system', 'user', 'assistant' or 'tool'"),
        ("missing", "has no column 'question'"),
        ("type", "unsupported operand type(s) for +: 'int' and 'str'"),
    ],
)
def test_a_row_that_custom_code_cannot_take_is_a_bad_row(tmp_path: Path, way: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}')
    path, kwargs = str(tmp_path / "rows.jsonl"), {"way": way}
    (row,) = rows_of(dataset_name="tests/odd", dataset_path=path, dataset_kwargs=kwargs)
    assert isinstance(row, RejectedRow)
    assert row.reason == reason
    assert str(row.source) == f"{path}:1"


@pytest.mark.parametrize("has_system", [True, False])
def test_alpaca_puts_its_sentence_before_the_question_unless_disabled(tmp_path: Path, has_system: bool) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"instruction": "Add.", "input": "1, 2", "output": "3"}\n{"instruction": "Hi?", "output": "Yo."}\n'
        '{"instruction": "Hi?", "output": ""}\n{"instruction": null, "output": "x"}'
    )
    kwargs = {} if has_system else {"include_system_prompt": False}
    with_input, without, empty, null = rows_of(
        dataset_name="yahma/alpaca-cleaned", dataset_path=str(tmp_path / "rows.jsonl"), dataset_kwargs=kwargs
    )
    assert contents(with_input)[-2:] == ["Add.\n\n### Input:\n1, 2", "3"]
    assert contents(without)[-2:] == ["Hi?", "Yo."]
    assert len(contents(without)) == 2 + has_system
    assert ("paired with an input" in contents(with_input)[0]) is has_system
    assert isinstance(empty, RejectedRow)
    assert isinstance(null, RejectedRow)
    assert (empty.reason, null.reason) == (
        "'output' is empty, so there is nothing to learn",
        "'instruction' must be text",
    )


READ_FROM_HUB = """
from oumi.core.configs import DatasetParams
from oumi.core.datasets import dataset_for
from oumi.core.errors import DataError

for split in ("train", "test", "tset"):
    try:
        rows = list(dataset_for(DatasetParams(dataset_name="me/chats", split=split)).rows())
        print(len(rows), rows[-1].source, rows[-1].value.messages[-1].content)
    except DataError as error:
        print(error)
"""


def test_a_data_set_of_the_hub_that_no_one_registered_is_read_by_its_shape(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "me" / "chats"
    folder.mkdir(parents=True)
    for split, count in {"train": 3, "test": 1}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:count]))
    with HubServer(tmp_path / "hub") as hub:
        result = subprocess.run(
            [sys.executable, "-c", READ_FROM_HUB],
            env={**os.environ, **hub.environment(tmp_path / "home"), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
    train, test, unknown = result.stdout.splitlines()
    assert (train, test) == ("3 me/chats[train]:2 2", "1 me/chats[test]:0 0")
    assert unknown.startswith('data set me/chats: Unknown split "tset". Should be one of')


def test_a_file_custom_does_not_stand_for_a_library_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oumi.core.datasets import import_extra_files

    (tmp_path / "datasets.py").write_text("HERE = True")
    (tmp_path / "extra.txt").write_text(f"# mine\n  {tmp_path / 'datasets.py'}  # one\n\n")
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", str(tmp_path / "extra.txt"))
    import_extra_files.cache_clear()
    import_extra_files()
    assert not hasattr(sys.modules["datasets"], "HERE")
    assert next(module for name, module in sys.modules.items() if name.startswith("oumi_extra_datasets")).HERE


def test_a_data_set_custom_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "extra.txt").write_text(f"{tmp_path / 'mine.py'}\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "Who?", "a": "Me."}\n{"q": "Why?", "a": "So."}\n')
    config = tiny_config(tmp_path, max_steps=1, log_examples=True)
    config.data.train.datasets[0] = DatasetParams(
        dataset_name="my/questions", dataset_path=str(tmp_path / "rows.jsonl"), dataset_kwargs={"mood": "sly"}
    )
    (tmp_path / "config.yaml").write_text(dump(config))
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", str(tmp_path / "extra.txt"))
    result = run_python("-m", "oumi", "train", "-c", str(tmp_path / "config.yaml"))
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "out" / "logs" / "rank_0000.log").read_text()
    assert "[Me. (sly)<|im_end|>]" in log


@pytest.mark.parametrize(
    ("listing", "message"), [(None, "no file"), ("/no/such/file.py\n", r"no file /no/such/file\.py")]
)
def test_a_listing_of_custom_files_that_is_wrong_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str | None, message: str
) -> None:
    from oumi.core.datasets import import_extra_files

    if listing is not None:
        (tmp_path / "extra.txt").write_text(listing)
    monkeypatch.setenv("OUMI_EXTRA_DEPS_FILE", str(tmp_path / "extra.txt"))
    import_extra_files.cache_clear()
    with pytest.raises(ConfigError, match=message):
        import_extra_files()


@pytest.mark.parametrize("name", ["system", "history"])
def test_alpaca_refuses_what_it_would_drop(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Q", "output": "A", name: "x"}) + "\n")
    (row,) = rows_of(dataset_name="yahma/alpaca-cleaned", dataset_path=str(path))
    assert isinstance(row, RejectedRow)
    assert f"has '{name}', which this data set does not read" in row.reason


def test_a_part_of_a_file_is_refused_and_a_name_of_one_is_reported_as_not_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.data.train.datasets[0].split = "train[:3]"
    (problem,) = refusals(config)
    assert problem.key == "data.train.datasets[0].split"
    assert "parts of local data are not supported" in problem.message
    config.data.train.datasets[0].split = "test"
    config.data.train.datasets[0].subset = "main"
    notes = make_plan(config, gather_facts(config)).notes
    for key in ("split", "subset"):
        assert any(f"not read: data.train.datasets[0].{key}: " in note for note in notes)
