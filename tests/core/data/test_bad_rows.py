# SPDX-License-Identifier: Apache-2.0
"""Law 6: every row is accounted for, and a bad one is named with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.configs import DatasetParams
from oumi.core.data.ledger import Ledger
from oumi.core.data.templates import Template
from oumi.core.data.tokens import Tokeniser, tokenise
from oumi.core.datasets import dataset_for
from oumi.core.errors import DataError
from tests.tiny import byte_tokenizer

GOOD = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'

# Text of the file, line of the bad row, and what is told of it.
BAD = {
    "truncated line": (f"{GOOD}\n{GOOD[:40]}", 2, "not valid JSON"),
    "bad JSON": (f"{GOOD}\n{{x}}\n{GOOD}\n", 2, "not valid JSON"),
    "NUL": (GOOD + "\n" + GOOD.replace('"a"', '"\x00"'), 2, "NUL"),
    "lone surrogate": (GOOD.replace('"a"', '"\\ud800"'), 1, "lone surrogate"),
    "wrong role": (GOOD.replace("user", "usr"), 1, "unknown role 'usr', did you mean 'user'?"),
    "missing field": (GOOD.replace('"content":"a"', '"contet":"a"'), 1, "has no 'content', did you mean 'contet'?"),
    "empty conversation": (f'{GOOD}\n{{"messages":[]}}', 2, "the conversation is empty"),
    "null content": (GOOD.replace('"a"', "null"), 1, "must be text, got null"),
    "number content": (GOOD.replace('"a"', "3"), 1, "must be text, got a number"),
}
# Text of the file, and how many of its rows are trained whole and truncated.
SOUND = {
    "BOM": ("\ufeff" + GOOD, 1, 0),
    "CRLF": (f"{GOOD}\r\n\r\n{GOOD}\r\n", 2, 0),
    "10 MB row": (GOOD + "\n" + GOOD.replace('"b"', '"' + "b" * 10_000_000 + '"'), 1, 1),
}


def account(folder: Path, text: str, max_rejected: int = 0) -> tuple[Ledger, DataError | None]:
    """Returns the ledger of a file with this text, and the error that reading it ends with."""
    path = folder / "rows.jsonl"
    path.write_bytes(text.encode())
    tokenizer = byte_tokenizer()
    tokeniser = Tokeniser(tokenizer, Template(tokenizer, tokenizer.chat_template), "all_assistant_turns", 512)
    ledger = Ledger("rows", "data.train", max_rejected)
    data = dataset_for(DatasetParams(dataset_name="text_sft", dataset_path=str(path)))
    try:
        tokenise(data.rows(), tokeniser, ledger)
    except DataError as error:
        return ledger, error
    return ledger, None


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_the_run_with_its_file_and_line(tmp_path: Path, kind: str) -> None:
    text, line, told = BAD[kind]
    ledger, error = account(tmp_path, text)
    assert error is not None
    assert f"rows.jsonl:{line}: " in str(error)
    assert told in str(error)
    assert "data.train.max_rejected_rows: 1" in str(error)
    assert_adds_up(ledger)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_that_is_allowed_stands_in_the_ledger(tmp_path: Path, kind: str) -> None:
    ledger, error = account(tmp_path, BAD[kind][0], max_rejected=1)
    assert error is None
    assert ledger.counts.rejected == 1
    assert_adds_up(ledger)


@pytest.mark.parametrize("kind", SOUND)
def test_an_unusual_row_is_read(tmp_path: Path, kind: str) -> None:
    text, trained, truncated = SOUND[kind]
    ledger, error = account(tmp_path, text)
    assert error is None
    assert (ledger.counts.trained, ledger.counts.truncated) == (trained, truncated)
    assert_adds_up(ledger)


def assert_adds_up(ledger: Ledger) -> None:
    rows = ledger.to_dict()["rows"]
    assert rows["read"] == rows["trained"] + rows["truncated"] + rows["rejected"] > 0
