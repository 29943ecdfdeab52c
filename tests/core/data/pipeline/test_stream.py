# SPDX-License-Identifier: Apache-2.0
"""Streams: the order is a function of (seed, epoch, place), and any place is found again without the way to it."""

from __future__ import annotations

import gzip
import json
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from oumi.core.configs import DatasetParams
from oumi.core.data.ledger import Ledger
from oumi.core.data.pipeline.concatenate import Concatenation
from oumi.core.data.pipeline.stream import ConcatenatedStream, ExampleStream, LimitedStream, Shuffle
from oumi.core.data.pipeline.stream_loader import MixedStream, PackedStream, StreamLoader
from oumi.core.data.sources.reader import RowReader
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.datasets import dataset_for
from oumi.core.errors import DataError
from oumi.core.plan.parts import StepsPlan
from oumi.core.types.example import Example, Row
from tests.tiny import byte_tokenizer

TEXTS = [f"{i:03d} " + "word " * (i % 7) for i in range(150)]
TOKENIZER = byte_tokenizer()
FORMATS = ["jsonl", "json", "jsonl.gz", "parquet", "csv"]


def write(folder: Path, kind: str, texts: list[str] = TEXTS, name: str = "rows") -> Path:
    path = folder / f"{name}.{kind}"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=40)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        content = {
            "jsonl": lines,
            "json": json.dumps([{"text": text} for text in texts]),
            "csv": "text\n" + "".join(text + "\n" for text in texts),
        }
        path.write_text(content[kind])
    return path


def reader_of(path: Path) -> Callable[[Any], RowReader]:
    return dataset_for(DatasetParams(dataset_name="any", dataset_path=str(path)), is_streamed=True).reader


def stream_of(
    path: Path,
    shuffle: Shuffle | None = None,
    max_length: int | None = 20,
    allowed: int = 0,
    ledger: Ledger | None = None,
) -> ExampleStream:
    tokenizer = byte_tokenizer()
    dataset = dataset_for(DatasetParams(dataset_name="any", dataset_path=str(path)), is_streamed=True)
    row_tokenizer = RowTokenizer(
        tokenizer, Template(tokenizer, tokenizer.chat_template), TokenizeSpec("all", max_length)
    )
    return ExampleStream(dataset, row_tokenizer, ledger or Ledger("set", max_rejected=allowed), shuffle)


def texts_of(example: Example | None) -> tuple[str, ...] | None:
    """Returns the documents of an example as text, each with its line."""
    if example is None:
        return None
    return tuple(f"{document.source.line}:{TOKENIZER.decode(document.tokens)}" for document in example.documents())


def drawn(stream: Any, count: int) -> list[Any]:
    return [texts_of(stream.next()) for _ in range(count)]


def groups(stream: Any, count: int) -> list[list[Any]]:
    return [[texts_of(example) for example in stream.next_group()] for _ in range(count)]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_reader_goes_on_from_any_place(tmp_path: Path, kind: str) -> None:
    reader = reader_of(write(tmp_path, kind))
    rows = reader(None).take(10_000)
    assert [row.value["text"] for row in rows if isinstance(row, Row)] == TEXTS
    for first in (0, 1, 63, 149, 150):
        before = reader(None)
        before.take(first)
        place = json.loads(json.dumps(before.place()))
        assert reader(place).take(10_000) == rows[first:]


def test_a_reader_goes_on_across_files_and_blank_lines(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path, "jsonl", TEXTS[i * 50 : i * 50 + 50], f"part-{i}")
    path = tmp_path / "part-1.jsonl"
    path.write_text("\ufeff\n" + path.read_text().replace("\n", "\n\n"))
    reader = reader_of(tmp_path)
    rows = reader(None).take(10_000)
    assert [row.value["text"] for row in rows if isinstance(row, Row)] == TEXTS
    assert [row.source.line for row in rows][49:53] == [50, 2, 4, 6]
    for first in range(0, 151, 10):
        before = reader(None)
        before.take(first)
        assert reader(before.place()).take(10_000) == rows[first:]


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    reader = reader_of(path)(None)
    reader.take(10)
    path.write_text(path.read_text()[:2000])
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: the file changed: it had [\d,]+ bytes, and has 2,000 bytes"):
        reader.take(1000)


def test_a_file_that_changes_between_two_rounds_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    stream = stream_of(path)
    while stream.next() is not None:
        pass
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:0: the file changed"):
        stream.restart()


def test_a_line_of_a_stream_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    path.write_text(path.read_text().replace('"text": "007', '"txet": "007'))
    with pytest.raises(DataError, match=r"1 of 8 rows cannot be used\n.*rows\.jsonl:8: .*did you mean"):
        drawn(stream_of(path), 20)
    lenient = stream_of(path, allowed=1)
    drawn(lenient, 20)
    assert lenient.state()["counts"]["rejected"] == 1


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shuffle", [None, Shuffle(7, 40)])
def test_a_stream_goes_on_from_any_place(tmp_path: Path, kind: str, shuffle: Shuffle | None) -> None:
    path = write(tmp_path, kind)
    uninterrupted = stream_of(path, shuffle)
    expected_texts = drawn(uninterrupted, 400)
    for first in (0, 1, 40, 65, 199, 250):
        before, after = stream_of(path, shuffle), stream_of(path, shuffle)
        drawn(before, first)
        after.restore(json.loads(json.dumps(before.state())))
        assert drawn(after, 100) == expected_texts[first : first + 100]
        assert after.state() == state_after(path, shuffle, first + 100)


def state_after(path: Path, shuffle: Shuffle | None, count: int) -> Any:
    stream = stream_of(path, shuffle)
    drawn(stream, count)
    return stream.state()


def test_rounds_hold_the_same_rows_and_a_shuffle_orders_each_anew(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    stream = stream_of(path, Shuffle(7, 1000), max_length=None)
    rounds = []
    for _ in range(3):
        rounds.append(list(iter(stream.next, None)))
        stream.restart()
    texts = [[texts_of(example) for example in each] for each in rounds]
    assert texts[0] != texts[1] != texts[2]
    assert Counter(texts[0]) == Counter(texts[1]) == Counter(texts[2])
    assert len(texts[0]) == len(TEXTS)
    assert stream.state()["counts"]["read"] == len(TEXTS), "rows are counted once, not in every round"


def test_the_order_is_another_with_another_seed(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    orders = [drawn(stream_of(path, Shuffle(seed, 50)), 100) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("skip_last", [True, False])
def test_joined_documents_go_on_from_any_place(tmp_path: Path, skip_last: bool) -> None:
    path = write(tmp_path, "jsonl")

    def joined() -> ConcatenatedStream:
        return ConcatenatedStream(stream_of(path, Shuffle(3, 30), max_length=None), Concatenation(16, skip_last))

    expected = list(iter(joined().next, None))
    lengths = [len(row.tokens) for row in expected]
    assert set(lengths[:-1]) == {16}
    total = sum(len(document.tokens) for document in iter(stream_of(path, max_length=None).next, None))
    assert sum(lengths) == (total - total % 16 if skip_last else total)
    for first in range(0, len(expected), 9):
        before, after = joined(), joined()
        drawn(before, first)
        after.restore(json.loads(json.dumps(before.state())))
        assert drawn(after, len(expected) - first + 1) == [*map(texts_of, expected[first:]), None]


def mixed(folder: Path, strategy: str, proportions: list[float] | None, seed: int = 5) -> MixedStream:
    for i, count in enumerate((20, 60)):
        if not (folder / f"set-{i}.jsonl").exists():
            write(folder, "jsonl", [f"{'ab'[i]}{j}" for j in range(count)], f"set-{i}")
    parts = [LimitedStream(stream_of(folder / f"set-{i}.jsonl", Shuffle(i, 16)), None, f"set-{i}") for i in range(2)]
    return MixedStream(parts, proportions, strategy, seed)


def names(mixture: MixedStream, count: int) -> str:
    letters = []
    for _ in range(count):
        (text,) = texts_of(mixture.next()) or ()
        letters.append(text.partition(":")[2][0])
    return "".join(letters)


def test_without_proportions_data_sets_follow_each_other(tmp_path: Path) -> None:
    assert names(mixed(tmp_path, "first_exhausted", None), 160) == ("a" * 20 + "b" * 60) * 2


@pytest.mark.sample(1)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.7])
def test_shares_come_out_within_one_percent(tmp_path: Path, share: float) -> None:
    write(tmp_path, "jsonl", ["a"] * 2000, "set-0")
    write(tmp_path, "jsonl", ["b"] * 2000, "set-1")
    drawn_names = names(mixed(tmp_path, "first_exhausted", [share, 1 - share]), 2000)
    for end in (500, 1000, 2000):
        assert abs(drawn_names[:end].count("a") / end - share) < 0.01


def test_an_epoch_ends_with_the_first_or_with_the_last_data_set(tmp_path: Path) -> None:
    for strategy, counts in (("first_exhausted", (20, 19)), ("all_exhausted", (20, 60))):
        mixture = mixed(tmp_path, strategy, [0.5, 0.5])
        rows = [texts_of(mixture.next())]
        while not mixture.epoch:
            rows.append(texts_of(mixture.next()))
        texts = [row[0].partition(":")[2] for row in rows[:-1] if row]
        different = [len({text for text in texts if text[0] == name}) for name in "ab"]
        assert different[0] == counts[0]
        assert different[1] >= counts[1]
        assert abs(sum(1 if text[0] == "a" else -1 for text in texts)) <= 2


@pytest.mark.sample(2)
@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("proportions", [None, [0.3, 0.7]])
@pytest.mark.parametrize("packs", [False, True])
def test_a_mixture_goes_on_from_any_place(
    tmp_path: Path, strategy: str, proportions: list[float] | None, packs: bool
) -> None:
    def rows() -> Any:
        mixture = mixed(tmp_path, strategy, proportions)
        return PackedStream(mixture, 24, seed=1) if packs else mixture

    expected = groups(rows(), 300)
    for first in (0, 1, 77, 200):
        before, after = rows(), rows()
        groups(before, first)
        after.restore(json.loads(json.dumps(before.state())))
        assert groups(after, 100) == expected[first : first + 100]


def test_packed_rows_are_full_and_hold_every_example(tmp_path: Path) -> None:
    packed = PackedStream(mixed(tmp_path, "first_exhausted", None), 24, seed=1)
    rows = [packed.next_group() for _ in range(200)]
    assert max(sum(len(example.tokens) for example in row) for row in rows) <= 24
    assert packed.empty_share < 0.1
    assert len(rows[0]) > 1


def test_what_a_step_trains_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    def steps(world_size: int, rank: int) -> list[list[Any]]:
        plan = StepsPlan(2, 4 // world_size, world_size, 1, 10)
        rows = mixed(tmp_path, "first_exhausted", [0.3, 0.7])
        batches = StreamLoader(rows, plan, rank).from_step(0)
        return [[row.tokens.tolist() for batch in next(batches) for row in batch.documents()] for _ in range(10)]

    alone = steps(1, 0)
    for world_size in (2, 4):
        ranks = [steps(world_size, rank) for rank in range(world_size)]
        for step, rows in enumerate(alone):
            assert sorted(row for rank in ranks for row in rank[step]) == sorted(rows)


def test_a_data_set_gives_as_many_examples_as_are_requested(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", ["a", "b", "c"])
    limited = LimitedStream(stream_of(path), 7, "set")
    assert [text[0][2] for text in drawn(limited, 7)] == list("abcabca")
    assert limited.next() is None
    limited.restart()
    assert (texts_of(limited.next()) or ("",))[0].startswith("1:a")


def test_a_stream_of_no_rows_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    with pytest.raises(DataError, match="set has no rows to draw from"):
        LimitedStream(stream_of(path), None, "set").next()


def test_a_batch_is_reported_what_went_wrong_in_the_thread_that_reads(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    path.write_text(path.read_text().replace('"100', '"100\\ud800'))
    rows = MixedStream([LimitedStream(stream_of(path), None, "set")], None, "first_exhausted", 0)
    batches = StreamLoader(rows, StepsPlan(4, 1, 1, 1, 100)).from_step(0)
    with pytest.raises(DataError, match=r"rows\.jsonl:101: holds half of a character"):
        deque(batches, maxlen=0)


def test_the_account_of_joined_documents_is_that_of_kept_ones(tmp_path: Path) -> None:
    ledger = Ledger("set")
    joined = ConcatenatedStream(
        stream_of(write(tmp_path, "jsonl"), None, None, ledger=ledger), Concatenation(16, skip_last=True)
    )
    rows = list(iter(joined.next, None))
    counts = ledger.counts
    total = sum(
        len(document.tokens) for document in iter(stream_of(tmp_path / "rows.jsonl", max_length=None).next, None)
    )
    assert counts.read == counts.trained + counts.truncated == len(TEXTS)
    assert (counts.num_tokens, counts.cut_tokens) == (len(rows) * 16, total - len(rows) * 16)
    assert counts.cut_tokens > 0
    assert joined.state()["documents"]["counts"]["cut_tokens"] == counts.cut_tokens
