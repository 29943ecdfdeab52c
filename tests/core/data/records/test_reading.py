# SPDX-License-Identifier: Apache-2.0
"""What a row says is neither dropped nor doubled, whatever file or column it stands in."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from oumi.core.configs import DatasetParams
from oumi.core.data.checks.duplicates import repeated_rows
from oumi.core.data.checks.supervision import draw
from oumi.core.data.ledger import Ledger
from oumi.core.data.sources.jsonl import read_list
from oumi.core.data.sources.source import FileSource
from oumi.core.data.store.token_table import tokenize_rows
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.training_data import read_training_data
from oumi.core.datasets import BaseSftDataset, dataset_for
from oumi.core.errors import DataError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.types.conversation import Conversation, Message, Role
from oumi.core.types.example import Judged, Preference, RejectedRow, Row, Source
from tests.runs import tiny_config
from tests.shown import to_values
from tests.tiny import CHATML, byte_tokenizer

USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("system", "S"))
)
WORSE = {"role": "assistant", "content": "B"}


def value_of(record: Any, shape: str | None = None) -> Any:
    (row,) = to_values([Row(record, Source("set", "x.jsonl", 1))], shape)
    return row.value if isinstance(row, Row) else row.reason


def read(path: Path, name: str, **kwargs: Any) -> list[Row | RejectedRow]:
    return list(dataset_for(DatasetParams(dataset_name=name, dataset_path=str(path), dataset_kwargs=kwargs)).rows())


def texts(chat: Any) -> list[str]:
    assert isinstance(chat, Conversation), chat
    return [f"{message.role}: {message.text}" for message in chat.messages]


PAIRS = {
    "text and turns": {"prompt": "Q ", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
    "a name of None": {"prompt": [{**USER, "name": None}], "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
    "both alone": {"prompt": "Q", "chosen": [ASSISTANT], "rejected": [WORSE]},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_prompt_that_answers_repeat_is_reported_once(kind: str) -> None:
    pair = value_of(PAIRS[kind])
    assert isinstance(pair, Preference), pair
    assert [text.strip() for text in texts(pair.chosen)] == ["user: Q", "assistant: A"]


def test_a_system_turn_of_the_answers_leads() -> None:
    pair = value_of({"prompt": "Q", "chosen": [SYSTEM, USER, ASSISTANT], "rejected": [SYSTEM, USER, WORSE]})
    assert texts(pair.chosen) == ["system: S", "user: Q", "assistant: A"]
    pair = value_of({"prompt": [SYSTEM, USER], "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]})
    assert texts(pair.rejected) == ["system: S", "user: Q", "assistant: B"]
    other = [{"role": "user", "content": "Else?"}, ASSISTANT]
    assert "not the prompt" in value_of({"prompt": "Q", "chosen": other, "rejected": [USER, WORSE]})


@pytest.mark.parametrize(("label", "expected"), [(1, True), (0, False), ("true", True), ("0", False), (True, True)])
def test_a_label_of_any_spelling_judges(label: Any, expected: bool) -> None:
    judged = value_of({"prompt": "Q", "completion": "A", "label": label})
    assert isinstance(judged, Judged)
    assert judged.is_good is expected


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 1, 2], [True, None, None], [2, 1, 0], [None, True, False]])
def test_a_label_beside_a_completion_is_never_dropped_unseen(tmp_path: Path, labels: list[Any]) -> None:
    rows = [{"prompt": f"Spam? {i} ", "completion": "yes", "label": label} for i, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = tiny_config(tmp_path)
    config.data.train.datasets[0].dataset_path = str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"its 'label' is|by a column 'label'"):
        read_training_data(make_plan(config, gather_facts(config)), datetime(2026, 1, 2))


def test_images_beside_plain_text_are_refused() -> None:
    assert "has 'images', but plain text contains no images" in value_of(
        {"prompt": "Q", "completion": "A", "images": ["a.png"]}
    )
    assert "has 'image', but plain text" in value_of({"prompt": "Q", "completion": "A", "label": 1, "image": "a.png"})


def test_judged_completions_are_read_from_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nQ,A,true\nQ,B,0\n")
    assert [row.value.is_good for row in read(tmp_path / "a.csv", "kto_jsonl") if isinstance(row, Row)] == [True, False]


def test_chats_are_read_from_csv(tmp_path: Path) -> None:
    cell = json.dumps([USER, ASSISTANT]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n')
    (row,) = read(tmp_path / "a.csv", "text_sft")
    assert isinstance(row, Row), row
    assert texts(row.value) == ["user: Q", "assistant: A"]


def test_two_columns_of_one_name_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output,output\nQ,A,B\n")
    with pytest.raises(DataError, match=r"a\.csv:1: two columns have the same name: output"):
        read(tmp_path / "a.csv", "text_sft")


def test_a_system_column_leads_the_turns_of_any_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"system": "S", "messages": [USER, ASSISTANT]}))
    (row,) = read(tmp_path / "a.jsonl", "allenai/tulu-3-sft-mixture")
    assert isinstance(row, Row), row
    assert texts(row.value)[0] == "system: S"


def test_keys_that_only_other_rows_have_are_not_reported(tmp_path: Path) -> None:
    def call(arguments: Any) -> dict[str, Any]:
        function = {"name": "f", "arguments": arguments}
        return {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": function}]}]}

    table = pyarrow.Table.from_pylist([call({"city": "Bonn"}), call({"n": 1})])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet", "text_sft")
    assert isinstance(first, Row), first
    assert isinstance(second, Row), second
    assert first.value.messages[1].tool_calls[0].function.values() == {"city": "Bonn"}
    assert second.value.messages[1].tool_calls[0].function.values() == {"n": 1}


def test_files_of_one_name_are_distinguished(tmp_path: Path) -> None:
    for folder in ("a", "b", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text(json.dumps({"text": folder}))
    rows = FileSource(tmp_path, "set")
    assert [row.value["text"] for row in rows if isinstance(row, Row)] == ["a", "b"], "what is hidden is no data"
    before = rows.content()
    (tmp_path / "a" / "x.jsonl").write_text(json.dumps({"text": "c"}))
    assert FileSource(tmp_path, "set").content() != before


def test_rows_of_one_line_are_distinguished(tmp_path: Path) -> None:
    row = {"messages": [USER, ASSISTANT]}
    (tmp_path / "a.json").write_text(json.dumps([row, {"messages": [USER, WORSE]}, row]))
    tokenizer = byte_tokenizer()
    row_tokenizer = RowTokenizer(tokenizer, Template(tokenizer, CHATML), TokenizeSpec("all_assistant_turns"))
    table = tokenize_rows(to_values(read_list(tmp_path / "a.json", "set")), row_tokenizer, Ledger("set"))
    assert repeated_rows([table]).num_rows == 1


def test_a_turn_that_is_not_to_be_trained_is_not_where_all_is() -> None:
    turns = [(Role.USER, "Q", None), (Role.ASSISTANT, "A", False), (Role.USER, "R", None), (Role.ASSISTANT, "B", None)]
    chat = Conversation(messages=[Message(role=role, content=text, train=train) for role, text, train in turns])
    tokenizer = byte_tokenizer()
    (example,) = RowTokenizer(tokenizer, Template(tokenizer, CHATML), TokenizeSpec("all")).make(
        [Row(chat, Source("set", "x", 1))]
    )
    assert not isinstance(example, RejectedRow)
    assert draw(example.examples[0], tokenizer) == (
        "[<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n]A<|im_end|>[\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n]"
    )


BAD = {
    "role of a list": {"messages": [USER, {"role": ["assistant"], "content": "A"}]},
    "image without bytes": {
        "messages": [{"role": "user", "content": [{"type": "image", "image": "data:,"}]}, ASSISTANT]
    },
    "image that is no base64": {
        "messages": [{"role": "user", "content": [{"type": "image_binary", "binary": "é"}]}, ASSISTANT]
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_wrong_value_is_a_bad_row(kind: str) -> None:
    assert isinstance(value_of(BAD[kind]), str)


def test_a_fault_custom_code_names_the_row(tmp_path: Path) -> None:
    class Fragile(BaseSftDataset):
        def transform_conversation(self, example: Any) -> Any:
            return {"messages": [USER, {"role": "assistant", "content": example["xs"][0]}]}

    dataset = Fragile(data=[{"xs": []}])
    (row,) = dataset.rows()
    assert isinstance(row, RejectedRow)
    assert row.reason == "list index out of range"


@pytest.mark.parametrize(("split", "expected"), [("train", ["a", "b"]), ("test", ["c"]), ("validation", ["d"])])
def test_of_a_directory_only_the_split_is_read_that_is_requested(
    tmp_path: Path, split: str, expected: list[str]
) -> None:
    (tmp_path / "dev").mkdir()
    names = {"train-0.jsonl": "a", "my_train.jsonl": "b", "test.jsonl": "c", "dev/x.jsonl": "d"}
    for name, text in names.items():
        (tmp_path / name).write_text(json.dumps({"text": text}))
    rows = dataset_for(DatasetParams(dataset_name="text", dataset_path=str(tmp_path), split=split)).raw_rows()
    assert sorted(row.value["text"] for row in rows if isinstance(row, Row)) == expected


def test_a_split_that_no_file_of_a_directory_names_is_reported(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "c"}))
    params = DatasetParams(dataset_name="text", dataset_path=str(tmp_path))
    with pytest.raises(DataError, match="no file of split 'train'; the file names contain test"):
        list(dataset_for(params).raw_rows())
    (tmp_path / "test.jsonl").rename(tmp_path / "contest.jsonl")
    assert len(list(dataset_for(params).raw_rows())) == 1
