# SPDX-License-Identifier: Apache-2.0
"""Law 6: read = trained + truncated + rejected, with the reason of each."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from oumi.core.data.ledger import Ledger
from oumi.core.data.readers import read_rows
from oumi.core.data.shapes import to_values
from oumi.core.data.templates import Template
from oumi.core.data.tokens import Tokeniser, tokenise
from oumi.core.errors import DataError
from oumi.core.train import train
from oumi.core.types.example import BadRow, Source
from tests.runs import tiny_config
from tests.tiny import byte_tokenizer

MAX_LENGTH = 64


def row(content: Any = "Hi?", answer: Any = "Yo.", role: str = "user") -> str:
    return json.dumps({"messages": [{"role": role, "content": content}, {"role": "assistant", "content": answer}]})


# Kind of row, how it looks, and the reason for which it is rejected; None: it is trained.
KINDS: dict[str, tuple[str, str | None]] = {
    "trained": (row(), None),
    "truncated": (row(answer="word " * 30), None),
    "bad JSON": ("{nope", "not valid JSON"),
    "cut off": (row()[:-9], "not valid JSON"),
    "wrong role": (row(role="usr"), "unknown role 'usr', did you mean 'user'?"),
    "null": (row(content=None), "the content must be text, got null"),
    "number": (row(answer=7), "the content must be text, got a number"),
    "no answer": (row(answer=""), "the assistant says nothing, so there is nothing to learn"),
    "long prompt": (row(content="word " * 30), f"every trained token lies beyond model_max_length {MAX_LENGTH}"),
    "NUL": (row().replace("Hi", "H\x00"), "holds a NUL byte"),
    "surrogate": (row().replace("Hi", "\\udc00"), "holds half of a character (a lone surrogate)"),
    "other shape": ('{"instruction": "a", "output": "b"}', "has the shape 'alpaca', the rows before it 'messages'"),
}


def read(path: Path, max_rejected: int) -> tuple[Ledger, int]:
    """Returns the account of a file, and how many rows are in the table."""
    tokenizer, ledger = byte_tokenizer(), Ledger("set", "data.train", max_rejected)
    tokeniser = Tokeniser(tokenizer, Template(tokenizer, tokenizer.chat_template), "all_assistant_turns", MAX_LENGTH)
    return ledger, len(tokenise(to_values(read_rows(path, "set")), tokeniser, ledger))


@pytest.mark.parametrize("seed", range(10))
def test_two_hundred_rows_are_accounted_for_as_planted(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    planted = ["trained", *dice.choices(list(KINDS), k=199)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(KINDS[kind][0] for kind in planted))
    ledger, num_rows = read(path, max_rejected=200)
    counts = Counter(planted)
    told = ledger.to_dict()
    rejected = 200 - counts["trained"] - counts["truncated"]
    assert told["rows"] == {
        "read": 200, "trained": counts["trained"], "truncated": counts["truncated"], "rejected": rejected,
        "split": 0,
    }  # fmt: skip
    assert num_rows == counts["trained"] + counts["truncated"]
    assert told["reasons"] == dict(Counter(reason for kind in planted if (reason := KINDS[kind][1]) is not None))
    lines = [line for line, kind in enumerate(planted, 1) if KINDS[kind][1] is not None]
    assert [int(one.removeprefix(f"{path}:").partition(":")[0]) for one in told["rejected"]] == lines
    tokens = told["tokens"]
    assert tokens["read"] == tokens["trained"] + tokens["prompt"] + tokens["cut"] + tokens["rejected"]


def test_one_reject_stops_the_run_unless_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row()}\n{{nope\n{row()}\n{row(role='usr')}\n")
    with pytest.raises(DataError) as stopped:
        read(path, max_rejected=1)
    message = str(stopped.value)
    assert message.startswith("set: 2 of 4 rows cannot be used\n")
    assert f"{path}:2: not valid JSON" in message
    assert f"{path}:4: turn 0: unknown role 'usr'" in message
    assert message.endswith("leave them out with data.train.max_rejected_rows: 2")
    assert read(path, max_rejected=2)[1] == 2


def test_of_very_many_rejects_the_first_are_told() -> None:
    ledger = Ledger("set")
    for i in range(50):
        ledger.counts.reject(BadRow(Source("set", "x.jsonl", i + 1), "no good"))
    with pytest.raises(DataError, match=r"50 of 50 rows(?s:.*)x\.jsonl:20: no good\n  \.\.\. and 30 more"):
        ledger.close()


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
