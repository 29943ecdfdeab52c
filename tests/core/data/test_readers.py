# SPDX-License-Identifier: Apache-2.0
"""Files become rows, each with the line where it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from oumi.core.data.readers import count_rows, read_rows
from oumi.core.errors import DataError
from oumi.core.types.example import BadRow, Row

RECORDS = [{"a": "one"}, {"a": "zwei ü"}, {"a": "three\nlines"}]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    return path


LINES = "".join(json.dumps(one) + "\n" for one in RECORDS)
FILES = {
    "lines": ("x.jsonl", LINES, [1, 2, 3]),
    "no end of line": ("x.jsonl", LINES.rstrip("\n"), [1, 2, 3]),
    "blank lines": ("x.jsonl", "\n" + LINES.replace("\n", "\n  \n"), [2, 4, 6]),
    "BOM": ("x.jsonl", "\ufeff" + LINES, [1, 2, 3]),
    "CRLF": ("x.jsonl", LINES.replace("\n", "\r\n"), [1, 2, 3]),
    "lines in .json": ("x.json", LINES, [1, 2, 3]),
    "list": ("x.json", json.dumps(RECORDS), [1, 1, 1]),
    "list, BOM": ("x.json", "\ufeff" + json.dumps(RECORDS), [1, 1, 1]),
    "list, written out": ("x.json", json.dumps(RECORDS, indent=2), [2, 5, 8]),
    "list, a record a line": ("x.json", "[\n" + ",\n".join(json.dumps(one) for one in RECORDS) + "\n]\n", [2, 3, 4]),
    "list below blanks": ("x.json", "\n\n " + json.dumps(RECORDS), [3, 3, 3]),
}


@pytest.mark.parametrize("kind", FILES)
def test_rows_come_with_their_lines(tmp_path: Path, kind: str) -> None:
    name, text, lines = FILES[kind]
    path = write(tmp_path / name, text)
    rows = list(read_rows(path, "set"))
    assert [row.value for row in rows if isinstance(row, Row)] == RECORDS
    assert [row.source.line for row in rows] == lines
    assert str(rows[0].source) == f"{path}:{lines[0]}"
    assert count_rows(path) == len(RECORDS)


def test_a_parquet_file_comes_with_the_index_of_each_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet")
    assert [(row.value, row.source.line) for row in read_rows(path, "set")] == list(
        zip(RECORDS, (0, 1, 2), strict=True)
    )
    assert count_rows(path) == 3


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.jsonl", "", "empty"),
        ("x.txt", "a", r"ends in \.jsonl, \.json, \.parquet"),
        ("x.json", '[{"a": 1}, {"a"', r"x\.json:1: not valid JSON"),
        ("x.json", '[\n{"a": 1},\n', r"x\.json:3: not valid JSON: the list breaks off here"),
        ("x.json", '[\n{"a": 1},\nnope]', r"x\.json:3: not valid JSON.*nope"),
        ("x.parquet", "not parquet at all", "not a Parquet file, or a broken one"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=told):
        list(read_rows(path, "set"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "none.jsonl", "set"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"\xff\xfe", "not UTF-8 (byte 0)"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": "\\ud83d"}', "lone surrogate"),
    ],
)
def test_a_line_that_is_no_record_leaves_the_others_alone(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(path, "set")
    assert isinstance(bad, BadRow)
    assert told in bad.reason
    assert bad.source.line == 2
    assert isinstance(first, Row)
    assert isinstance(last, Row)


def test_a_whole_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "x.jsonl", '{"a": "\\ud83d\\ude00"}'), "set")
    assert isinstance(row, Row)
    assert row.value == {"a": "😀"}
