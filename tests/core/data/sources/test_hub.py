# SPDX-License-Identifier: Apache-2.0
"""A stream of the Hub resumes at any of its places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oumi.core.data.sources.hub import HubStreamSource
from oumi.core.types.example import RejectedRow, Row


def source_of(folder: Path) -> HubStreamSource:
    """Returns a stream of two files with the rows 0 to 19."""
    for i in range(2):
        lines = [json.dumps({"text": 10 * i + j}) for j in range(10)]
        (folder / f"{i}.jsonl").write_text("\n".join(lines))

    def open_rows() -> Any:
        from datasets import load_dataset

        files = [str(path) for path in sorted(folder.glob("*.jsonl"))]
        return load_dataset("json", data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache"))

    return HubStreamSource(open_rows, "set", "set[train]")


def values(rows: list[Row | RejectedRow]) -> list[tuple[int, Any]]:
    return [(row.source.line, row.value["text"]) for row in rows if isinstance(row, Row)]


def test_a_stream_that_is_resumed_twice_before_a_row_is_read_continues_at_its_place(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    first = source.reader(None)
    first.take(4)
    resumed = source.reader(first.place())
    assert resumed.place() == first.place()
    resumed_again = source.reader(resumed.place())
    assert values(resumed_again.take(8)) == [(i, i) for i in range(4, 12)]
    last = source.reader(resumed_again.place())
    assert values(last.take(100)) == [(i, i) for i in range(12, 20)]
    at_the_end = last.place()
    assert last.take(1) == source.reader(at_the_end).take(1) == []
