# SPDX-License-Identifier: Apache-2.0
"""The tokens of a data set on disk, so that memory does not grow with the number of rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.images import FileStates, is_unchanged
from oumi.core.data.tokenize.loss_mask import Rendered
from oumi.core.system.filesystem import storage_errors, sync_descriptor
from oumi.core.types.conversation import ContentItem
from oumi.core.types.example import Example, RejectedRow, Row, Source

BATCH_SIZE = 512
"""Rows that are tokenized together."""
# `TableWriter` and `TokenTable` share the format below. A change of this file changes `code_version`, so that the cache
# never returns a table of another format.
_STARTS = np.int32(1 << 30)
"""Added to the first token of a document that is not the first of its row; ids are smaller."""
_ROW = np.dtype(
    [
        ("end", "<i8"), ("line", "<i8"), ("file", "<i4"), ("dataset", "<i4"), ("targets", "<i8"), ("cut", "<i8"),
        ("digest", "<u8"), ("id", "<u8"), ("id_end", "<i8"), ("extras_end", "<i8"), ("row", "<i8"),
    ]
)  # fmt: skip
"""Facts of a row. Those that end in `end` are cumulative, so that a row is located by its record and the one before."""
_IMAGE_FILES = "images.jsonl"
"""The path of each image and the state of its file, see FileStates."""
_OPEN_FILES = ("_tokens", "_rows", "_ids", "_extras")
"""Attributes of a table that are numbers of open files."""
_READ_ROWS = 1 << 16
"""Records that `TokenTable.column` reads at once."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows as tokens."""

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    cuts: npt.NDArray[np.int64]
    """Tokens that were cut off each row."""
    sources: list[Source]
    extras: list[bytes]
    """Images and columns of each row, as `_extras_of` writes them."""
    is_first: list[bool]
    """False for the second and later examples of a row that was split."""
    counts: Counts
    image_files: FileStates = field(default_factory=dict)
    """State of each file that the rows refer to."""

    @classmethod
    def of(cls, examples: Sequence[Example], counts: Counts, is_first: list[bool] | None = None) -> Chunk:
        """Returns examples as a chunk, each from a row of its own if `is_first` is None."""
        return cls(
            tokens=_pack(examples),
            lengths=np.array([len(example.tokens) for example in examples], dtype=np.int64),
            cuts=np.array([example.num_cut for example in examples], dtype=np.int64),
            sources=[example.source for example in examples],
            extras=[_extras_of(example) for example in examples],
            is_first=[True] * len(examples) if is_first is None else is_first,
            counts=counts,
        )


def make_chunk(rendered: Sequence[Rendered | RejectedRow], row_tokenizer: RowTokenizer) -> Chunk:
    """Returns rendered rows as tokens, with their counts."""
    counts, examples, is_first = Counts(), list[Example](), list[bool]()
    for encoded in row_tokenizer.encode(rendered):
        if isinstance(encoded, RejectedRow):
            counts.reject(encoded)
        else:
            examples += encoded.examples
            is_first += [i == 0 for i in range(len(encoded.examples))]
            counts.accept(encoded)
    return replace(Chunk.of(examples, counts, is_first), image_files=row_tokenizer.encoder.image_files)


class TokenTable:
    """Rows end to end on disk: token ids, which of them are trained, and the source of each row.

    Files are read, not mapped: pages of a mapped file count as memory of the process.
    """

    def __init__(self, directory: Path) -> None:
        """Opens a table that a TableWriter has finished; its files may be deleted afterwards."""
        facts = json.loads((directory / "table.json").read_text())
        self.ledger = facts["ledger"]
        """Counts of the rows, as `Counts.to_state` returns them."""
        self.digest: str = facts["digest"]
        """SHA-256 of all ids, targets and boundaries."""
        self.highest_token: int = facts["highest_token"]
        self._names: list[str] = facts["names"]
        self._length: int = facts["num_rows"]
        self._tokens = os.open(directory / "tokens.bin", os.O_RDONLY)
        self._rows = os.open(directory / "rows.bin", os.O_RDONLY)
        self._ids = os.open(directory / "ids.bin", os.O_RDONLY)
        self._extras = os.open(directory / "extras.bin", os.O_RDONLY)

    def __del__(self) -> None:
        for name in _OPEN_FILES:
            # `__init__` may have failed before all files were open.
            if (file := self.__dict__.get(name)) is not None:
                os.close(file)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the table for another process, to which the open files are handed over: they may have no name."""
        return {**vars(self), **{name: DupFd(getattr(self, name)) for name in _OPEN_FILES}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, **{name: state[name].detach() for name in _OPEN_FILES}})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        before, row = self._row(index)
        packed = self._read(int(before["end"]), int(row["end"]))
        is_target = packed >= 0
        tokens = np.where(is_target, packed, ~packed)
        starts = (0, *np.flatnonzero(tokens >= _STARTS).tolist())
        example = Example(tokens & (_STARTS - 1), is_target, self._source(row), starts, num_cut=int(row["cut"]))
        start, end = int(before["extras_end"]), int(row["extras_end"])
        if start == end:  # most rows have no extras
            return example
        extras = json.loads(os.pread(self._extras, end - start, start))
        images = tuple(tuple(ContentItem.model_validate(image) for image in images) for images in extras["images"])
        return replace(example, images=images, columns=extras["columns"])

    def span(self, first: int, last: int, documents: range, ends: npt.NDArray[np.int64]) -> Example:
        """Returns a span of all tokens end to end, as one row of several documents.

        Args:
            first: Index of the first token.
            last: Index after the last token.
            documents: Rows of the table that overlap the span.
            ends: Index after the last token of each row of the table [R].
        """
        rows = np.frombuffer(
            os.pread(self._rows, _ROW.itemsize * len(documents), _ROW.itemsize * documents.start), _ROW
        )
        packed = self._read(first, last)
        # The first document may begin before the span.
        starts = (0, *(ends[documents.start : documents.stop - 1] - first).tolist())
        sources = [self._source(row) for row in rows]
        return Example(_unpack_ids(packed), packed >= 0, sources[0], starts, tuple(sources[1:]))

    def _read(self, first: int, last: int) -> npt.NDArray[np.int32]:
        return np.frombuffer(os.pread(self._tokens, 4 * (last - first), 4 * first), np.int32)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each row [R]."""
        return np.diff(self.column("end"), prepend=0)

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns the number of trained tokens of each row [R]."""
        return self.column("targets")

    def column(self, name: str) -> npt.NDArray[Any]:
        """Returns a fact of every row [R]: `digest` of its tokens, `id` (a digest, 0 for none), `line`, `file`..."""
        values = np.empty(self._length, dtype=_ROW[name])
        # Block by block: all facts of all rows might not fit into memory.
        for first in range(0, self._length, _READ_ROWS):
            block = os.pread(self._rows, _ROW.itemsize * _READ_ROWS, _ROW.itemsize * first)
            values[first : first + _READ_ROWS] = np.frombuffer(block, _ROW)[name]
        return values

    def source(self, index: int) -> Source:
        """Returns the file, the line and the id of a row."""
        before, row = self._row(index)
        start = int(before["id_end"])
        name = os.pread(self._ids, int(row["id_end"]) - start, start).decode() if row["id"] else None
        return replace(self._source(row), id=name)

    def _row(self, index: int) -> tuple[Any, Any]:
        """Returns the record before that of a row, zeros for the first, and its own."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        if not index:
            return np.zeros(1, dtype=_ROW)[0], np.frombuffer(os.pread(self._rows, _ROW.itemsize, 0), _ROW)[0]
        # Both in one read, since they are neighbors.
        before, row = np.frombuffer(os.pread(self._rows, 2 * _ROW.itemsize, (index - 1) * _ROW.itemsize), _ROW)
        return before, row

    def _source(self, row: Any) -> Source:
        return Source(self._names[row["dataset"]], self._names[row["file"]], int(row["line"]))


class TableWriter:
    """Writes a table, chunk by chunk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._tokens = (directory / "tokens.bin").open("wb")
        self._rows = (directory / "rows.bin").open("wb")
        self._ids = (directory / "ids.bin").open("wb")
        self._extras = (directory / "extras.bin").open("wb")
        self._image_files = (directory / _IMAGE_FILES).open("wb")
        self._names: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._num_rows = self._num_sources = self._end = self._id_end = self._extras_end = 0
        self._highest = -1

    def add(self, chunk: Chunk) -> None:
        """Appends the rows of a chunk."""
        # Where each row ends among all tokens, and where it came from.
        ends = np.cumsum(chunk.lengths) + self._end
        rows = np.zeros(len(ends), dtype=_ROW)
        rows["end"] = ends
        rows["line"] = [source.line for source in chunk.sources]
        rows["file"] = [self._number(source.path) for source in chunk.sources]
        rows["cut"] = chunk.cuts
        rows["row"] = np.cumsum(chunk.is_first, dtype=np.int64) + self._num_sources
        self._num_sources += sum(chunk.is_first)
        rows["dataset"] = [self._number(source.dataset) for source in chunk.sources]
        # Targets of each row, and a digest of its tokens and extras, by which duplicates are found.
        starts = ends - chunk.lengths - self._end
        if len(starts):  # reduceat takes no empty list
            rows["targets"] = np.add.reduceat(chunk.tokens >= 0, starts, dtype=np.int64)
        data = memoryview(chunk.tokens).cast("B")
        bounds = zip((4 * starts).tolist(), (4 * (ends - self._end)).tolist(), strict=True)
        with_extras = zip(bounds, chunk.extras, strict=True)
        rows["digest"] = [_digest_of(data[first:last], extras) for (first, last), extras in with_extras]
        # Extras and ids vary in length, so they have files of their own.
        rows["extras_end"] = np.cumsum([len(extras) for extras in chunk.extras], dtype=np.int64) + self._extras_end
        self._extras.write(b"".join(chunk.extras))
        self._extras_end += sum(map(len, chunk.extras))
        ids = [(source.id or "").encode("utf-8", "replace") for source in chunk.sources]
        rows["id"] = [_digest_of(row_id) if row_id else 0 for row_id in ids]
        rows["id_end"] = np.cumsum([len(row_id) for row_id in ids], dtype=np.int64) + self._id_end
        self._ids.write(b"".join(ids))
        self._id_end += sum(map(len, ids))
        # The lengths, too: the same tokens may be cut into other rows.
        for part in (chunk.tokens.tobytes(), chunk.lengths.tobytes(), *chunk.extras):
            self._digest.update(part)
        self._tokens.write(chunk.tokens.tobytes())
        self._rows.write(rows.tobytes())
        self._image_files.writelines(f"{json.dumps(item)}\n".encode() for item in chunk.image_files.items())
        self._num_rows += len(ends)
        self._end += int(chunk.lengths.sum())
        if len(chunk.tokens):
            self._highest = max(self._highest, int(_unpack_ids(chunk.tokens).max()))

    def finish(self, ledger: Ledger, facts: dict[str, Any]) -> None:
        """Completes the table; everything is on the disk when this returns."""
        sizes = {}
        # Before `table.json`, whose presence means that the other files are complete.
        for file in (self._tokens, self._rows, self._ids, self._extras, self._image_files):
            file.flush()
            sync_descriptor(file.fileno())
            sizes[Path(file.name).name] = file.tell()
            file.close()
        table = {
            "num_rows": self._num_rows,
            "num_tokens": self._end,
            "highest_token": self._highest,
            "digest": self._digest.hexdigest(),
            "names": list(self._names),
            "ledger": ledger.counts.to_state(),
            "sizes": sizes,
            **facts,
        }
        with (self._directory / "table.json").open("w") as table_file:
            json.dump(table, table_file)
            table_file.flush()
            sync_descriptor(table_file.fileno())

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))


def images_unchanged(directory: Path) -> bool:
    """Returns True if the images of the table in a directory are the files of which it was made."""
    with (directory / _IMAGE_FILES).open() as lines:
        return all(is_unchanged(*json.loads(line)) for line in lines)


def tokenize_rows(rows: Iterable[Row | RejectedRow], row_tokenizer: RowTokenizer, ledger: Ledger) -> TokenTable:
    """Returns the rows as tokens, and counts them in a ledger; the files of the table are deleted, but stay open.

    Raises:
        DataError: More rows are rejected than the ledger allows.
    """
    remaining = iter(rows)
    folder = Path(tempfile.mkdtemp(prefix="oumi-tokens-"))
    try:
        chunks = (
            make_chunk(row_tokenizer.render(batch), row_tokenizer)
            for batch in iter(lambda: list(islice(remaining, BATCH_SIZE)), [])
        )
        with storage_errors(folder, "free some space, or set TMPDIR to a directory on another disk"):
            write_table(chunks, ledger, folder, {})
        return TokenTable(folder)
    # The system frees the space of a deleted file when the last process closes it, even one that is killed.
    finally:
        shutil.rmtree(folder)


def write_table(chunks: Iterable[Chunk], ledger: Ledger, directory: Path, facts: dict[str, Any]) -> None:
    """Writes a table of chunks; raises DataError if more rows are rejected than the ledger allows."""
    writer = TableWriter(directory)
    for chunk in chunks:
        writer.add(chunk)
        ledger.counts.add(chunk.counts)
    # Only now, so that the error lists the bad rows of the whole data set.
    ledger.close()
    writer.finish(ledger, facts)


def _pack(examples: Sequence[Example]) -> npt.NDArray[np.int32]:
    """Returns examples as they are stored [T]: `~id` if a token is not trained, `_STARTS` added at a document's start.

    So one file with 4 bytes per token holds ids, targets and boundaries.
    """
    if not examples:
        return np.zeros(0, dtype=np.int32)
    tokens = np.concatenate([example.tokens for example in examples])
    is_target = np.concatenate([example.is_target for example in examples])
    if any(len(example.starts) > 1 for example in examples):
        firsts = np.cumsum([0, *(len(example.tokens) for example in examples[:-1])])
        pairs = zip(firsts, examples, strict=True)
        tokens[[first + start for first, example in pairs for start in example.starts[1:]]] += _STARTS
    return np.where(is_target, tokens, ~tokens)


def _digest_of(data: bytes | memoryview, more: bytes = b"") -> int:
    digest = hashlib.blake2b(data, digest_size=8)
    digest.update(more)
    return int.from_bytes(digest.digest(), "little")


def _extras_of(example: Example) -> bytes:
    """Returns the images of each document of a row and its columns as JSON, nothing if it has neither."""
    if not example.images and not example.columns:
        return b""
    images = [
        [image.model_dump(mode="json", exclude_none=True) for image in document_images]
        for document_images in example.images
    ]
    # A column of another type, such as a date, is kept as its text.
    return json.dumps({"images": images, "columns": dict(example.columns)}, default=str).encode()


def _unpack_ids(packed: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.where(packed < 0, ~packed, packed) & (_STARTS - 1)
