# SPDX-License-Identifier: Apache-2.0
"""Every way in which rows stand in a file, and every way in which a file is broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from oumi.core.data.sources.jsonl import excerpt
from oumi.core.data.sources.tabular import count_rows, read_rows
from oumi.core.errors import DataError
from oumi.core.types.example import RejectedRow, Row

RECORDS: list[Any] = [{"a": 1}, {"a": "two\nlines"}, {"a": [3, None]}]
LINES = [json.dumps(record) for record in RECORDS]
BOM = b"\xef\xbb\xbf"

# Name of the file, its bytes, and the line of each record.
SOUND: dict[str, tuple[str, bytes, list[int]]] = {
    "lines": ("x.jsonl", "\n".join(LINES).encode() + b"\n", [1, 2, 3]),
    "lines without a last newline": ("x.jsonl", "\n".join(LINES).encode(), [1, 2, 3]),
    "lines in .json": ("x.json", "\n".join(LINES).encode(), [1, 2, 3]),
    "blank lines": ("x.jsonl", ("\n\n" + "\n \t\n".join(LINES) + "\n\n").encode(), [3, 5, 7]),
    "CRLF": ("x.jsonl", "\r\n".join(LINES).encode() + b"\r\n", [1, 2, 3]),
    "BOM": ("x.jsonl", BOM + "\n".join(LINES).encode(), [1, 2, 3]),
    "BOM on a line of its own": ("x.jsonl", BOM + b"\n" + "\n".join(LINES).encode(), [2, 3, 4]),
    "compact list": ("x.json", json.dumps(RECORDS).encode(), [1, 1, 1]),
    "list, a row a line": ("x.json", ("[\n" + ",\n".join(LINES) + "\n]\n").encode(), [2, 3, 4]),
    "list, commas first": ("x.json", ("[ " + "\n, ".join(LINES) + "\n]").encode(), [1, 2, 3]),
    "pretty list": ("x.json", json.dumps(RECORDS, indent=1).encode(), [2, 5, 8]),
    "pretty list with CRLF": ("x.json", json.dumps(RECORDS, indent=1).replace("\n", "\r\n").encode(), [2, 5, 8]),
    "list after blank lines": ("x.json", b"\n\n " + json.dumps(RECORDS).encode() + b"\n\n", [3, 3, 3]),
    "list after a BOM": ("x.json", BOM + json.dumps(RECORDS).encode(), [1, 1, 1]),
}


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(path: Path) -> list[Row | RejectedRow]:
    return list(read_rows(path, "rows"))


@pytest.mark.parametrize("kind", SOUND)
def test_every_record_is_read_with_its_line(tmp_path: Path, kind: str) -> None:
    name, content, lines = SOUND[kind]
    path = written(tmp_path, name, content)
    rows = read(path)
    assert all(isinstance(row, Row) for row in rows), rows
    assert [row.value for row in rows if isinstance(row, Row)] == RECORDS
    assert [row.source.line for row in rows] == lines
    assert str(rows[0].source) == f"{path}:{lines[0]}"
    assert {row.source.dataset for row in rows} == {"rows"}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path: Path, name: str, suffix: str) -> None:
    import pyarrow

    content = b'[{"a": 1},\n{"a": 2}]' if name == "x.json" else b'{"a": 1}\n{"a": 2}\n'
    plain = read(written(tmp_path, name, content))
    packed = gzip.compress(content) if suffix == ".gz" else pyarrow.compress(content, codec="zstd", asbytes=True)
    records = read(written(tmp_path, name + suffix, packed))
    assert [row.value for row in records if isinstance(row, Row)] == [
        row.value for row in plain if isinstance(row, Row)
    ]
    assert [row.source.line for row in records] == [row.source.line for row in plain]


@pytest.mark.parametrize("kind", SOUND)
def test_the_count_equals_what_is_read(tmp_path: Path, kind: str) -> None:
    name, content, _ = SOUND[kind]
    assert count_rows(written(tmp_path, name, content)) == len(RECORDS)


def test_the_line_of_a_list_is_right_when_a_text_holds_brackets_and_newlines(tmp_path: Path) -> None:
    records = [{"a": "] [ , \\n"}, {"a": "\u2028 \x85 \x0b"}, {"a": '"]'}]
    path = written(tmp_path, "x.json", json.dumps(records, indent=1, ensure_ascii=False).encode())
    rows = read(path)
    assert [row.value for row in rows if isinstance(row, Row)] == records
    assert [row.source.line for row in rows] == [2, 5, 8]


def test_parquet_rows_are_read_with_their_index_across_row_groups(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    records = [{"messages": [{"role": "user", "content": f"é{i}"}], "id": None} for i in range(25)]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=4)
    rows = read(path)
    assert [row.value for row in rows if isinstance(row, Row)] == records
    assert [row.source.line for row in rows] == list(range(25))
    assert count_rows(path) == 25


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "x.jsonl: empty"),
        ("x.parquet", b"PAR1", "not a valid Parquet file"),
        (
            "x.xml",
            b"a,b",
            "unknown file format; expected a name that ends in .jsonl, .json, .parquet, .csv, .tsv, .txt",
        ),
        ("x.json", b"[", "x.json:1: not valid JSON: the list is truncated here"),
        ("x.json", b'[\n{"a": 1},\n', "x.json:3: not valid JSON: the list is truncated here"),
        ("x.json", b'[\n{"a": 1},\n{"a": 2', "x.json:3: not valid JSON: Expecting ',' delimiter"),
        ("x.json", b'[\n{"a": 1}\n', "x.json:3: not valid JSON: the list is truncated here"),
        ("x.json", b'[{"a": 1}]\n[{"a": 2}]', 'x.json:1: text after the end of the list: [{"a": 2}]'),
        ("x.json", b'[{"a": 1}] trailing', "text after the end of the list: trailing"),
        ("x.json", b'[\n{"a": 1}\n{"a": 2}]', "x.json:3: not valid JSON: no comma between two rows"),
        ("x.json", b'[,{"a": 1}]', "unexpected comma before the first row"),
        ("x.json", b'[{"a": 1},,{"a": 1}]', "x.json:1: not valid JSON: Expecting value: ,"),
        ("x.json", b'[\n{"a": 1},\nnope]', "x.json:3: not valid JSON: Expecting value: nope]"),
        ("x.json", b'[{"a": NaN, "b": 1, "b": 2]', "x.json:1: not valid JSON: Expecting ',' delimiter"),
        ("x.json", b"[" + b"[" * 5000 + b"]" * 5000 + b"]", "x.json:1: not valid JSON: nested too deep"),
        ("x.json", b'[{"a": "\xff"}]', "x.json: not UTF-8 (byte 8)"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_is_recognized_by_its_ending_in_any_case(tmp_path: Path) -> None:
    for name, content in (("a.JSONL", '{"a": 1}\n'), ("a.JSON", '[{"a": 1}]'), ("b.Json", '{"a": 1}')):
        (tmp_path / name).write_text(content)
        (row,) = read_rows(tmp_path / name, "d")
        assert isinstance(row, Row)
        assert row.value == {"a": 1}


def test_an_object_over_several_lines_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"a": 1}], "b": 2}, indent=2))
    with pytest.raises(DataError, match=r"a\.json: one object over several lines; expected a list"):
        list(read_rows(tmp_path / "a.json", "d"))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    for use in (count_rows, lambda path: read_rows(path, "rows")):
        with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
            use(tmp_path / "gone.jsonl")


def test_a_directory_with_the_name_of_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "x.jsonl")


def test_a_list_that_breaks_off_has_no_count(tmp_path: Path) -> None:
    assert count_rows(written(tmp_path, "x.json", b'[{"a": 1},')) is None


@pytest.mark.parametrize(
    ("line", "reason", "shown"),
    [
        (b"{'a': 1}", "not valid JSON: Expecting property name", "{'a': 1}"),
        (b'{"a": Infinity}', "not valid JSON: Infinity is not JSON", '{"a": Infinity}'),
        (b'{"a": 1} {"a": 2}', "not valid JSON: Extra data", '{"a": 1} {"a": 2}'),
        (b'{"a": "\xff\xfe"}', "not UTF-8: byte 7", "\ufffd"),
        (b'{"a": "\x00"}', "holds a NUL byte", '{"a": "\\x00"}'),
        (b'{"a": "\\udc00"}', "holds half of a character", '{"a": "\\udc00"}'),
        (b'{"\\ud83d": 1}', "holds half of a character", "ud83d"),
        (b"[" * 5000, "not valid JSON: nested too deep", "[[["),
        (b'{"a": "\x1b[31m"}', "not valid JSON: Invalid control character", "\\x1b[31m"),
    ],
)
def test_a_broken_line_is_reported_and_those_around_it_are_read(
    tmp_path: Path, line: bytes, reason: str, shown: str
) -> None:
    before, bad, after = read(written(tmp_path, "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n'))
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert after.source.line == 3
    assert isinstance(bad, RejectedRow)
    assert bad.source.line == 2
    assert bad.reason.startswith(reason)
    assert shown in bad.excerpt


REFUSED = {
    '{"b": NaN}': "NaN is not JSON",
    '{"b": [-Infinity]}': "-Infinity is not JSON",
    '{"b": 1e999}': "1e999 is larger than any number",
    '{"b": 1, "b": 2}': "an object has the key 'b' twice",
    '{"b": {"c": {"d": 1, "e": 2, "d": 1}}}': "an object has the key 'd' twice",
    f'{{"b": {"9" * 5000}}}': "Exceeds the limit (4300 digits)",
}


@pytest.mark.parametrize("text", REFUSED)
@pytest.mark.parametrize("form", ["lines", "list", "cell"])
def test_a_value_that_would_be_lost_rejects_its_row_alone(tmp_path: Path, form: str, text: str) -> None:
    rows = ['{"a": 1}', text, '{"b": "}} NaN ", "c": ' + "9" * 4000 + "}"]
    cells = ['"[{}]"'.format(row.replace('"', '""')) for row in rows]
    name, lines = {
        "lines": ("x.jsonl", rows),
        "list": ("x.json", [f"[{rows[0]}", f",{rows[1]}", f",{rows[2]}]"]),
        "cell": ("x.csv", ["b", *cells]),
    }[form]
    content = "\n".join(lines)
    first, bad, last = read(written(tmp_path, name, content.encode()))
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, RejectedRow)
    assert bad.reason.startswith(f"not valid JSON: {REFUSED[text]}")
    assert [row.source.line for row in (bad, last)] == ([3, 4] if form == "cell" else [2, 3])


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\u0000 \\ud800"', '{"a": ["\\udfff"]}'])
@pytest.mark.parametrize("form", ["lines", "list"])
def test_half_a_character_is_found_wherever_it_stands(tmp_path: Path, form: str, text: str) -> None:
    content = f'{{"a": 1}}\n{{"b": {text}}}' if form == "lines" else f'[{{"a": 1}},\n{{"b": {text}}}]'
    first, second = read(written(tmp_path, "x.json" if form == "list" else "x.jsonl", content.encode()))
    assert isinstance(first, Row)
    assert isinstance(second, RejectedRow)
    assert (second.source.line, second.reason) == (2, "holds half of a character (a lone surrogate)")


def test_a_character_written_as_two_halves_is_whole(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path, "x.jsonl", b'{"a": "\\ud83d\\ude00 \\\\ud800"}'))
    assert isinstance(row, Row)
    assert row.value == {"a": "😀 \\ud800"}


def test_an_excerpt_is_short_and_cannot_steer_a_terminal() -> None:
    assert excerpt("a\n\x1b[2J") == "a\\n\\x1b[2J"
    assert excerpt("b" * 81) == "b" * 80 + "..."
    assert excerpt("b" * 80) == "b" * 80
