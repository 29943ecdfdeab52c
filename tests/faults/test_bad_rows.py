# SPDX-License-Identifier: Apache-2.0
"""T35, law 6: of rows that are wrong in every way, each is told with its line, and the account adds up."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import DatasetParams
from oumi.core.data.ledger import Ledger
from oumi.core.data.store.token_table import tokenize_rows
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.datasets import ShapedDataset, dataset_for
from oumi.core.errors import DataError
from oumi.core.train import train
from oumi.core.types.example import RejectedRow, Source
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer

MAX_LENGTH = 64
LONG = "word " * 30
POLICIES = ("right", "left", "reject", "split")
TOO_LONG = f"longer than model_max_length {MAX_LENGTH}"
BEYOND = f"every trained token lies beyond model_max_length {MAX_LENGTH}"
SURROGATE = "holds half of a character (a lone surrogate)"
NUL = "holds a NUL byte"

Fate = str | dict[str, str]
"""`trained`, `truncated`, else why it is rejected; by policy of truncation where they differ."""


def chat(content: Any = "Hi?", answer: Any = "Yo.", role: Any = "user", **others: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content}, turn("assistant", answer)], **others})


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chats(*turns: Any, **others: Any) -> str:
    return json.dumps({"messages": list(turns), **others})


CHATS: dict[str, tuple[str, Fate]] = {
    "trained": (chat(), "trained"),
    "an extra field": (chat(topic="x", difficulty=3), "trained"),
    "numbers as text": (chat("1", "2"), "trained"),
    "a null beside": (chat(tools=None, images=None), "trained"),
    "parts of text": (chat([{"type": "text", "text": "Hi?"}]), "trained"),
    "long answer": (
        chat(answer=LONG),
        {"right": "truncated", "left": "truncated", "reject": TOO_LONG, "split": "trained"},
    ),
    "long question": (
        chat(LONG),
        {"right": BEYOND, "left": "truncated", "reject": TOO_LONG, "split": "truncated"},
    ),
    "bad JSON": ("{nope", "not valid JSON"),
    "cut off": (chat()[:-9], "not valid JSON"),
    "an array": ("[1, 2]", "a row must be an object, got a list"),
    "null for a row": ("null", "a row must be an object, got null"),
    "NUL": (chat().replace("Hi", "H\x00"), NUL),
    "surrogate": (chat().replace("Hi", "\\udc00"), SURROGATE),
    "role typo": (chat(role="usr"), "unknown role 'usr', did you mean 'user'?"),
    "assitant": (
        chats(turn("user", "a"), turn("assitant", "b")),
        "unknown role 'assitant', did you mean 'assistant'?",
    ),
    "number for a role": (chat(role=3), "unknown role 3"),
    "no role": (chats({"content": "a"}, turn("assistant", "b")), "has no 'role'"),
    "content misspelled": (
        chats({"role": "user", "contnet": "a"}, turn("assistant", "b")),
        "has no 'content', did you mean 'contnet'?",
    ),
    "null content": (chat(content=None), "the content must be text, got null"),
    "number content": (chat(answer=7), "the content must be text, got a number"),
    "object content": (chat({"text": "a"}), "the content must be text, got an object"),
    "list of numbers": (chat([1, 2]), "a part of type None without text; expected text or an image"),
    "part without text": (chat([{"type": "text"}]), "a part of type 'text' without text; expected text or an image"),
    "a turn of text": (chats("Hi?", turn("assistant", "Yo.")), "must be an object, got text"),
    "messages as text": ('{"messages": "Hi?"}', "'messages' must be a list of turns, got text"),
    "messages as null": ('{"messages": null}', "'messages' must be a list of turns, got null"),
    "empty conversation": ('{"messages": []}', "the conversation is empty"),
    "no assistant": (chats(turn("user", "a")), "no turn of the assistant, so there is nothing to learn"),
    "no answer": (chat(answer=""), "the assistant says nothing, so there is nothing to learn"),
    "two systems": (
        chats(turn("system", "a"), turn("system", "b"), turn("assistant", "c")),
        "a second system turn",
    ),
    "wrong flag": (
        chats(turn("user", "a"), {**turn("assistant", "b"), "weight": 0.5}),
        "'weight' must be true or false, 1 or 0, got 0.5",
    ),
    "tools as a number": (chat(tools=3), "'tools' must be a list of functions, got a number"),
    "other shape": ('{"instruction": "a", "output": "b"}', "has the shape 'alpaca', the rows before it 'messages'"),
    "no shape": ('{"a": 1}', "has no 'messages'"),
}

PAIR = {"prompt": "Hi?", "chosen": "Yo.", "rejected": "No."}
ANSWER_BEYOND = f"every trained token of an answer lies beyond model_max_length {MAX_LENGTH}"
NO_PROMPT_LEFT = f"no prompt is left before an answer within model_max_length {MAX_LENGTH}"
PAIRS: dict[str, tuple[str, Fate]] = {
    "trained": (json.dumps(PAIR), "trained"),
    "turns": (json.dumps({**PAIR, "chosen": [turn("assistant", "Yo.")]}), "trained"),
    "a long answer": (
        json.dumps({**PAIR, "chosen": "b" + LONG}),
        {"right": "truncated", "left": NO_PROMPT_LEFT, "reject": TOO_LONG},
    ),
    "answers that differ late": (
        json.dumps({**PAIR, "chosen": LONG + "a", "rejected": LONG + "b"}),
        {
            "right": f"the answers are the same within model_max_length {MAX_LENGTH}",
            "left": NO_PROMPT_LEFT,
            "reject": TOO_LONG,
        },
    ),
    "a long question": (
        json.dumps({**PAIR, "prompt": LONG}),
        {"right": ANSWER_BEYOND, "left": "truncated", "reject": TOO_LONG},
    ),
    "equal": (
        json.dumps({**PAIR, "chosen": "No."}),
        "'chosen' and 'rejected' are the same, so there is nothing to learn",
    ),
    "no rejected": (json.dumps({"prompt": "a", "chosen": "b"}), "has no 'rejected'"),
    "rejcted": (
        json.dumps({"prompt": "a", "chosen": "b", "rejcted": "c"}),
        "has no 'rejected', did you mean 'rejcted'?",
    ),
    "null": (json.dumps({**PAIR, "chosen": None}), "'chosen' must be text or turns, got null"),
    "number": (json.dumps({**PAIR, "rejected": 3}), "'rejected' must be text or turns, got a number"),
    "empty": (json.dumps({**PAIR, "rejected": ""}), "the assistant says nothing, so there is nothing to learn"),
    "bad JSON": ("{", "not valid JSON"),
    "surrogate": ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', SURROGATE),
}
JUDGED = {"prompt": "Hi?", "completion": "Yo.", "label": True}
LABEL = "'label' must be true or false, got "
JUDGEMENTS: dict[str, tuple[str, Fate]] = {
    "trained": (json.dumps(JUDGED), "trained"),
    "bad one": (json.dumps({**JUDGED, "label": False}), "trained"),
    "long": (
        json.dumps({**JUDGED, "completion": LONG}),
        {"right": "truncated", "left": "truncated", "reject": TOO_LONG},
    ),
    "label 1": (json.dumps({**JUDGED, "label": 1}), "trained"),
    "label 2": (json.dumps({**JUDGED, "label": 2}), LABEL + "a number"),
    "label as text": (json.dumps({**JUDGED, "label": "perhaps"}), LABEL + "text"),
    "label null": (json.dumps({**JUDGED, "label": None}), LABEL + "null"),
    "no label": (json.dumps({"prompt": "a", "completion": "b"}), "has no 'label'"),
    "no completion": (json.dumps({"prompt": "a", "label": True}), "has no 'completion'"),
    "empty": (json.dumps({**JUDGED, "completion": ""}), "'completion' is empty, so there is nothing to learn"),
    "NUL": (json.dumps(JUDGED).replace("Hi", "\x00"), NUL),
}
TEXTS: dict[str, tuple[str, Fate]] = {
    "trained": ('{"text": "a text"}', "trained"),
    "long": (
        json.dumps({"text": LONG}),
        {"right": "truncated", "left": "truncated", "reject": TOO_LONG, "split": "trained"},
    ),
    "empty": ('{"text": ""}', "'text' is empty, so there is nothing to learn"),
    "null": ('{"text": null}', "'text' must be text, got null"),
    "number": ('{"text": 3}', "'text' must be text, got a number"),
    "list": ('{"text": ["a"]}', "'text' must be text, got a list"),
    "texts": ('{"texts": "a"}', "has no 'text', did you mean 'texts'?"),
    "NaN": ('{"text": NaN}', "not valid JSON"),
}
SHAPES = {"messages": CHATS, "preference": PAIRS, "kto": JUDGEMENTS, "text": TEXTS}


def read(
    path: Path, max_rejected: int, shape: str = "messages", policy: str = "right", length: int | None = MAX_LENGTH
):
    """Returns the account of a file, and how many examples are in the table."""
    tokenizer, ledger = byte_tokenizer(), Ledger("set", "data.train", max_rejected)
    target = "all_assistant_turns" if shape in ("messages", "text") else "final_assistant_turn"
    row_tokenizer = RowTokenizer(
        tokenizer, Template(tokenizer, tokenizer.chat_template), TokenizeSpec(target, length, policy)
    )
    data = dataset_for(DatasetParams(dataset_name="anything", dataset_path=str(path)))
    assert isinstance(data, ShapedDataset)
    data.shape = shape
    return ledger, len(tokenize_rows(data.rows(), row_tokenizer, ledger))


def fate_of(kind: tuple[str, Fate], policy: str) -> str:
    return kind[1] if isinstance(kind[1], str) else kind[1][policy]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shape", "policy"),
    [(shape, policy) for shape in SHAPES for policy in POLICIES if policy != "split" or shape in ("messages", "text")],
)
def test_two_hundred_rows_are_accounted_for_as_planted(tmp_path: Path, shape: str, policy: str, seed: int) -> None:
    kinds, dice = SHAPES[shape], random.Random(f"{shape} {policy} {seed}")
    planted = ["trained", *kinds, *dice.choices(list(kinds), k=199 - len(kinds))]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(kinds[kind][0] for kind in planted).encode())
    ledger, num_examples = read(path, 200, shape, policy)
    report = ledger.to_dict()
    fates = Counter(fate_of(kinds[kind], policy) for kind in planted)
    reasons = {fate: number for fate, number in fates.items() if fate not in ("trained", "truncated")}
    rows = report["rows"]
    assert {key: rows[key] for key in ("read", "trained", "truncated", "rejected")} == {
        "read": 200,
        "trained": fates["trained"],
        "truncated": fates["truncated"],
        "rejected": sum(reasons.values()),
    }
    assert report["reasons"] == reasons
    expected = [
        (line, fate)
        for line, kind in enumerate(planted, 1)
        if (fate := fate_of(kinds[kind], policy)) not in ("trained", "truncated")
    ]
    assert len(report["rejected"]) == len(expected)
    for rejected, (line, reason) in zip(report["rejected"], expected, strict=True):
        assert rejected.startswith(f"{path}:{line}: ")
        assert reason in rejected
    assert num_examples == report["examples"]["made"] >= fates["trained"] + fates["truncated"]
    check_tokens(report, read(path, 200, shape, policy, length=None)[0].to_dict())


def check_tokens(report: dict[str, Any], uncut: dict[str, Any]) -> None:
    """Checks that tokens and targets add up to those of the same rows at any length."""
    tokens, targets = report["tokens"], report["targets"]
    assert tokens["read"] == tokens["trained"] + tokens["prompt"] + tokens["cut"] + tokens["rejected"]
    assert targets["read"] == targets["trained"] + targets["cut"] + targets["rejected"]
    assert (tokens["read"], targets["read"]) == (uncut["tokens"]["read"], uncut["targets"]["read"])
    assert targets["trained"] == tokens["trained"]


@pytest.mark.parametrize("kind", [kind for kind, (_, fate) in CHATS.items() if fate not in ("trained",)])
def test_one_bad_row_stops_the_run_with_its_line_and_may_be_left_out(tmp_path: Path, kind: str) -> None:
    row, fate = CHATS[kind]
    if isinstance(fate, dict):
        fate = fate["right"]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{chat()}\n{row}\n{chat()}\n")
    if fate == "truncated":
        assert read(path, 0)[1] == 3
        return
    with pytest.raises(DataError) as stopped:
        read(path, 0)
    message = str(stopped.value)
    assert message.startswith("set: 1 of 3 rows cannot be used\n")
    assert f"{path}:2: " in message
    assert fate in message
    assert message.endswith("leave them out with data.train.max_rejected_rows: 1")
    assert read(path, 1)[1] == 2


def test_of_very_many_rejects_the_first_are_reported_and_their_kinds_stay_few() -> None:
    ledger = Ledger("set")
    for i in range(5000):
        ledger.counts.reject(RejectedRow(Source("set", "x.jsonl", i + 1), f"no good {i}"))
    with pytest.raises(DataError, match=r"5000 of 5000 rows(?s:.*)x\.jsonl:20: no good 19\n  \.\.\. and 4980 more"):
        ledger.close()
    report = ledger.to_dict()
    assert len(report["rejected"]) == 1000
    assert len(report["reasons"]) == 51
    assert sum(report["reasons"].values()) == 5000


def test_the_report_is_written_though_the_run_is_stopped(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write("{nope\n")
    with pytest.raises(DataError, match=r"chats\.jsonl:25: not valid JSON"):
        train(config)
    (report,) = json.loads((tmp_path / "out" / "data_report.json").read_text())["train"]
    assert report["rows"] == {"read": 25, "trained": 24, "truncated": 0, "rejected": 1, "split": 0}
    config.data.train.max_rejected_rows = 1
    train(config)
