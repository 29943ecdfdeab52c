# SPDX-License-Identifier: Apache-2.0
"""T34: a file that is broken is told with its line, before the model is loaded; an odd one is read as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.data.sources.jsonl import MAX_ROW_BYTES
from oumi.core.errors import ConfigError, DataError
from oumi.core.train import train
from tests.fork_server import run_python
from tests.runs import tiny_config


def chat(question: str = "a", answer: str = "b", **others: Any) -> bytes:
    """Returns a row of JSON Lines."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **others}, ensure_ascii=False).encode()


def nested(depth: int) -> Any:
    """Returns lists within lists."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def deep(depth: int) -> bytes:
    return chat()[:-1] + b', "metadata": ' + b"[" * depth + b"]" * depth + b"}"


GOOD = chat()
BEFORE = b"".join(chat(f"a{i}") + b"\n" for i in range(16))

# Line 17 of a file, and what is told of it.
BAD: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[:40], "not valid JSON"),
    "bad JSON": (b"{x}", "not valid JSON: Expecting property name"),
    "two rows": (GOOD + GOOD, "not valid JSON: Extra data"),
    "NUL": (chat().replace(b'"a"', b'"\x00"'), "holds a NUL byte"),
    "surrogate": (chat().replace(b'"a"', b'"\\ud800"'), "holds half of a character (a lone surrogate)"),
    "not UTF-8": (chat().replace(b'"a"', b'"\xff"'), "not UTF-8: byte"),
    "NaN": (chat().replace(b'"a"', b"NaN"), "not valid JSON: NaN is not JSON"),
    "control": (chat().replace(b'"a"', b'"\x1b[2J\x07"'), "not valid JSON: Invalid control character"),
    "right to left": (b'{"messages": [{"role": "\xe2\x80\xae"}]}', "turn 0: has no 'content'"),
    "nested 200": (deep(200), "not valid JSON: nested too deep"),
    "nested 990": (deep(990), "not valid JSON: nested too deep"),
    "nested 10k": (deep(10_000), "not valid JSON: nested too deep"),
    "nested 100k": (b'{"a":' * 100_000, "not valid JSON: nested too deep"),
    "nested with half a character": (deep(900).replace(b'"a"', b'"\\ud800"'), "not valid JSON: nested too deep"),
    "a number": (b"17", "a row must be an object, got a number"),
    "too long": (chat("a" * MAX_ROW_BYTES), f"longer than {MAX_ROW_BYTES:,} bytes"),
}
# Bytes of a file, and how many of its rows are trained whole and truncated.
SOUND: dict[str, tuple[bytes, int, int]] = {
    "BOM": (b"\xef\xbb\xbf" + GOOD, 1, 0),
    "CRLF": (GOOD + b"\r\n\r\n" + GOOD + b"\r\n", 2, 0),
    "no newline at the end": (GOOD + b"\n" + GOOD, 2, 0),
    "blank lines": (b"\n \n" + GOOD + b"\n\t\n", 1, 0),
    "a line separator within a text": (chat("a\u2028b\x85c"), 1, 0),
    "nested 90": (chat(metadata=nested(90)), 1, 0),
    "many brackets": (chat("[" * 400), 1, 0),
    "1 MB row": (GOOD + b"\n" + chat(answer="b" * 1_000_000), 1, 1),
}


def config_of(folder: Path, content: bytes, name: str = "data.jsonl", **split: Any) -> TrainingConfig:
    """Returns a run on a file with this content."""
    config = tiny_config(folder, max_steps=1)
    (folder / name).write_bytes(content)
    config.data.train.datasets[0].dataset_path = str(folder / name)
    for key, value in split.items():
        setattr(config.data.train, key, value)
    return config


def break_model(folder: Path) -> None:
    """Makes the model one that cannot be loaded: its weights have other shapes than it wants."""
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 96}))


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "out" / "data_report.json").read_text())["train"][0]
    return report


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_stops_the_run_before_the_model_is_loaded(tmp_path: Path, kind: str) -> None:
    line, reason = BAD[kind]
    config = config_of(tmp_path, BEFORE + line + b"\n" + GOOD)
    break_model(tmp_path)
    with pytest.raises(DataError) as stopped:
        train(config)
    message = str(stopped.value)
    (row,) = [line_of_message for line_of_message in message.splitlines() if "data.jsonl:17: " in line_of_message]
    assert reason in row
    assert message.endswith("data.train.max_rejected_rows: 1")
    assert all(char.isprintable() or char == "\n" for char in message)
    excerpt = row.partition(reason)[2]
    assert len(excerpt) < 80 + 100
    rows = report_of(tmp_path)["rows"]
    assert rows["rejected"] == 1
    assert rows["read"] == rows["trained"] + 1
    assert rows["read"] == 18 or kind == "too long"  # of a large file, rows are trained before all are read


@pytest.mark.parametrize("kind", SOUND)
def test_an_odd_file_is_read_as_it_stands(tmp_path: Path, kind: str) -> None:
    content, trained, truncated = SOUND[kind]
    train(config_of(tmp_path, content))
    rows = report_of(tmp_path)["rows"]
    assert (rows["trained"], rows["truncated"]) == (trained, truncated)
    assert rows["read"] == rows["trained"] + rows["truncated"] + rows["rejected"]


def oumi(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "oumi", *arguments)


def test_the_command_ends_with_65_and_names_the_line_with_an_excerpt(tmp_path: Path) -> None:
    line = b'{"messages": [{"role": "user", "content": "\x1b[31m' + "Ünï".encode() + b"x" * 200 + b'"'
    config_of(tmp_path, BEFORE + line + b"\n").to_yaml(tmp_path / "config.yaml")
    break_model(tmp_path)
    process = oumi("train", "-c", str(tmp_path / "config.yaml"))
    assert process.returncode == 65, process.stderr
    message = process.stderr.partition("Error: ")[2]
    shown = '{"messages": [{"role": "user", "content": "\\x1b[31mÜnï' + "x" * 200
    assert f"{tmp_path / 'data.jsonl'}:17: not valid JSON: Invalid control character" in message
    assert f": {shown[:80]}...\n" in message
    assert "Traceback" not in process.stderr
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("name", "begin", "end"), [("data.jsonl", b"", b""), ("data.json", b"[\n", b"\n]"), ("broken.jsonl", b"{", b"")]
)
def test_a_line_of_50_mb_takes_less_than_three_times_its_memory(
    tmp_path: Path, name: str, begin: bytes, end: bytes
) -> None:
    size = 50_000_000
    (tmp_path / name).write_bytes(begin + chat("a" * size) + end)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from oumi.core.data.sources.source import FileSource\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "rows = FileSource(Path(sys.argv[1]), 'set')\n"
        "(row,) = rows.indexed() or rows\n"
        "(again,) = rows\n"
        "print(peak() - before, str(row))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True)
    grown, _, message = ran.stdout.partition(" ")
    assert int(grown) < 3 * size
    assert re.search(rf"{name}:[12]: longer than 16,000,000 bytes: it has 50,[\d,]+", message)
    assert len(message) < 400


def test_the_model_of_these_tests_cannot_be_loaded(tmp_path: Path) -> None:
    config = config_of(tmp_path, GOOD)
    break_model(tmp_path)
    with pytest.raises((RuntimeError, ConfigError)):
        train(config)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


# A zstd file need not hold a checksum, so a bit may flip unseen.
@pytest.mark.parametrize(("suffix", "harm"), [(".gz", cut_off), (".gz", flip_a_bit), (".zst", cut_off)])
def test_a_compressed_file_that_breaks_off_is_reported_with_the_line(tmp_path: Path, suffix: str, harm: Any) -> None:
    import gzip

    import pyarrow

    rows = b"".join(chat(f"question {i * i}") + b"\n" for i in range(3000))
    packed = gzip.compress(rows) if suffix == ".gz" else pyarrow.compress(rows, codec="zstd", asbytes=True)
    config = config_of(tmp_path, packed, f"data.jsonl{suffix}", max_rejected_rows=5000)
    harm(tmp_path / f"data.jsonl{suffix}")
    with pytest.raises(DataError, match=rf"data\.jsonl{re.escape(suffix)}:\d+: not a valid \w+ file, or truncated"):
        train(config)
