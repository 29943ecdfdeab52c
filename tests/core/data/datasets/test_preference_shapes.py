# SPDX-License-Identifier: Apache-2.0
"""Every shape of preferences and of judged answers that users of TRL and LLaMA-Factory have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oumi.core.errors import DataError
from oumi.core.trainers.native import NativeTrainer
from oumi.core.types.example import RejectedRow
from tests.core.data.records.test_reading import read
from tests.laws.test_preference import config_of
from tests.runs import build
from tests.shown import shown
from tests.tiny import byte_tokenizer, write_pairs

USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Ho"), ("assistant", "No"))
)
CHATS = (["user: Hi", "assistant: Ho"], ["user: Hi", "assistant: No"])
TEXTS = ("Hi |Ho", "Hi |No")
PAIRS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "texts": ("preference_pairs_jsonl", {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}, CHATS),
    "turns": ("preference_pairs_jsonl", {"prompt": [USER], "chosen": [YES], "rejected": [NO]}, CHATS),
    "single turns": ("preference_pairs_jsonl", {"prompt": "Hi", "chosen": YES, "rejected": NO}, CHATS),
    "implicit turns": ("preference_pairs_jsonl", {"chosen": [USER, YES], "rejected": [USER, NO]}, CHATS),
    "prompt repeated": (
        "preference_pairs_jsonl", {"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]}, CHATS
    ),
    "implicit text": (
        "preference_pairs_jsonl", {"chosen": "A: Hi B: Ho", "rejected": "A: Hi B: No"},
        ("A: Hi B:| Ho", "A: Hi B:| No"),
    ),
    "sharegpt": (
        "preference_pairs_jsonl",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Ho"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        CHATS,
    ),
    "alpaca": ("preference_pairs_jsonl", {"instruction": "Hi", "input": "", "chosen": "Ho", "rejected": "No"}, CHATS),
    "question": ("preference_pairs_jsonl", {"question": "Hi", "chosen": "Ho", "rejected": "No"}, CHATS),
    "rendered": ("text_dpo_jsonl", {"prompt": "Hi ", "chosen": "Ho", "rejected": "No"}, TEXTS),
    "rendered, implicit": ("text_dpo_jsonl", {"chosen": "Hi, Ho", "rejected": "Hi, No"}, ("Hi,| Ho", "Hi,| No")),
    "judged texts": ("kto_jsonl", {"prompt": "Hi ", "completion": "Ho", "label": True}, ("Hi |Ho", True)),
    "judged responses": ("kto_jsonl", {"prompt": "Hi ", "response": "Ho", "label": 1}, ("Hi |Ho", True)),
    "judged turns": ("kto_jsonl", {"prompt": [USER], "completion": [NO], "label": False}, (CHATS[1], False)),
    "judged turn": ("kto_jsonl", {"prompt": "Hi", "completion": [NO], "label": "false"}, (CHATS[1], False)),
    "judged messages": ("kto_jsonl", {"messages": [USER, NO], "label": False}, (CHATS[1], False)),
    "judged sharegpt": (
        "kto_jsonl",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "kto_tag": True},
        (CHATS[0], True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_row_of_a_known_shape_is_read(tmp_path: Path, name: str) -> None:
    dataset, row, expected = PAIRS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (value,) = read(tmp_path / "rows.jsonl", dataset)
    assert not isinstance(value, RejectedRow), value
    assert shown(value.value) == expected


@pytest.mark.parametrize(
    ("dataset", "row", "message"),
    [
        ("text_dpo_jsonl", {"chosen": "Ho", "rejected": "No"}, "'chosen' and 'rejected' that begin alike"),
        ("text_dpo_jsonl", {"prompt": "Hi", "chosen": "Ho", "rejected": "Ho"}, "are the same"),
        ("text_dpo_jsonl", {"prompt": "Hi", "chosen": "", "rejected": "No"}, "'chosen' is empty"),
        ("text_dpo_jsonl", {"chosen": "Hi", "rejected": "Hi No"}, "'chosen' is empty after the prompt"),
        ("text_dpo_jsonl", {"prompt": [USER], "chosen": "Ho", "rejected": "No"}, "'prompt'"),
        ("kto_jsonl", {"prompt": "Hi", "completion": "Ho", "label": "good"}, "'label' must be true or false"),
        ("kto_jsonl", {"messages": [USER, NO], "kto_tag": 3}, "'kto_tag' must be true or false"),
        ("kto_jsonl", {"messages": [USER, NO]}, "label"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_compared_is_rejected(
    tmp_path: Path, dataset: str, row: dict[str, Any], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (value,) = read(tmp_path / "rows.jsonl", dataset)
    assert isinstance(value, RejectedRow)
    assert message in value.reason


def test_rendered_text_gets_an_end_token_and_nothing_else(tmp_path: Path) -> None:
    config = config_of("dpo", tmp_path)
    rows = [{"prompt": f"<q>{i}</q>", "chosen": "yes", "rejected": "no"} for i in range(4)]
    config.data.train.datasets[0].dataset_name = "text_dpo_jsonl"
    Path(config.data.train.datasets[0].dataset_path or "").write_text("\n".join(map(json.dumps, rows)))
    example = build(config, NativeTrainer).run.loader.rows[0]
    texts = [byte_tokenizer().decode(document.tokens.tolist()) for document in example.documents()]
    assert texts == ["<q>0</q>yes<|im_end|>", "<q>0</q>no<|im_end|>"]
    assert [int(document.is_target.sum()) for document in example.documents()] == [4, 3]


def test_a_preference_becomes_two_judged_answers_for_kto(tmp_path: Path) -> None:
    config = config_of("kto", tmp_path)
    config.data.train.datasets[0].dataset_name = "preference_pairs_jsonl"
    write_pairs(Path(config.data.train.datasets[0].dataset_path or ""), 6)
    rows = build(config, NativeTrainer).run.loader.rows
    assert len(rows) == 12
    answers = [(byte_tokenizer().decode(rows[i].tokens.tolist()), rows[i].columns["label"]) for i in range(12)]
    assert [label for _, label in answers] == [True, False] * 6
    assert all(("It is" in text) == label for text, label in answers)
    ledger = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"][0]
    assert (ledger["rows"]["read"], ledger["examples"]["made"]) == (6, 12)


def test_judged_answers_are_not_preferences(tmp_path: Path) -> None:
    config = config_of("kto", tmp_path)
    config.training.method, config.training.trainer_kwargs = "dpo", {}
    with pytest.raises(DataError, match="expected preferences for method dpo, got completions judged"):
        build(config, NativeTrainer)
