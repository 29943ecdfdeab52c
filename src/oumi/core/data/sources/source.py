# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: files, a directory that `datasets` saved, or the Hub. Imports no torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Protocol

from oumi.core.configs.data import is_pattern
from oumi.core.data.sources.files import files_of, is_compressed, of_split
from oumi.core.data.sources.hub import HubSource, load_hub_rows
from oumi.core.data.sources.jsonl import LineIndex, index_lines, parse_line
from oumi.core.data.sources.reader import FileReader, Place, RowReader, size_of
from oumi.core.data.sources.tabular import count_rows, digest_of, is_lines, read_rows
from oumi.core.errors import DataError, did_you_mean
from oumi.core.types.example import RejectedRow, Row, Source

_LARGE_BYTES = 16_000_000
LARGE_ROWS = 20_000
_RATIO = 4
"""Of a text to the file in which it is compressed, roughly."""


class RowSource(Protocol):
    """The records of a data set, as they are stored."""

    def __iter__(self) -> Iterator[Row | RejectedRow]: ...

    def count(self) -> int | None:
        """Returns how many there are, None where only reading would tell."""
        ...

    def content(self) -> Mapping[str, str] | None:
        """Returns a digest of each file, by name; None if the records are more than plain values."""
        ...

    def indexed(self) -> IndexedRows | None:
        """Returns the records as a list of which any is found at once, None where there is none."""
        ...

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that goes on at a place; None is the beginning."""
        ...

    def sizes(self) -> Mapping[str, str]:
        """Returns what is known of the files without reading them, by name."""
        ...

    @property
    def is_large(self) -> bool:
        """Returns True if it takes several processes seconds to tokenize them."""
        ...


class IndexedRows(Protocol):
    """Records of which any is found at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row | RejectedRow: ...


class FileSource:
    """The records of one or more files."""

    def __init__(self, path: Path, dataset: str, sample_by: str = "document", split: str = "train") -> None:
        """Takes a file, a directory or a pattern; see `read_rows` for `sample_by`, and `of_split` for `split`."""
        self._files = of_split(files_of(path), path, split) if path.is_dir() else files_of(path)
        self._dataset = dataset
        self._sample_by = sample_by

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return chain.from_iterable(read_rows(path, self._dataset, self._sample_by) for path in self._files)

    def count(self) -> int | None:
        """Returns how many there are, None where only reading would tell."""
        counts = [count_rows(path) for path in self._files]
        return None if None in counts else sum(path or 0 for path in counts)

    def content(self) -> dict[str, str]:
        """Returns the SHA-256 of each file, by name."""
        digests = {f"{i} {path.name}": digest_of(path) for i, path in enumerate(self._files)}
        return digests | {"sample_by": self._sample_by}

    def indexed(self) -> IndexedRows | None:
        """Returns the records as a list, if all files are JSON Lines."""
        return _Lines([index_lines(path) for path in self._files], self._dataset) if self._are_lines() else None

    def reader(self, place: Place | None) -> FileReader:
        """Returns a reader that goes on at a place."""
        return FileReader(self._files, self._sizes, self._dataset, self._sample_by, place)

    @cached_property
    def _sizes(self) -> list[int | None]:
        """Returns how many bytes each file had when the first reader began."""
        return [size_of(path) for path in self._files]

    def sizes(self) -> dict[str, str]:
        """Returns the size of each file, by name."""
        sizes = {f"{i} {path.name}": str(size_of(path)) for i, path in enumerate(self._files)}
        return sizes | {"sample_by": self._sample_by}

    @property
    def is_large(self) -> bool:
        """Returns True for files of many megabytes."""
        return sum(path.stat().st_size * (_RATIO if is_compressed(path) else 1) for path in self._files) > _LARGE_BYTES

    def _are_lines(self) -> bool:
        return all(is_lines(path) for path in self._files)


class _Lines:
    """The lines of several files as one list."""

    def __init__(self, files: list[LineIndex], dataset: str) -> None:
        self._files = files
        self._dataset = dataset
        self._ends = list(accumulate(len(file) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row | RejectedRow:
        which = bisect_right(self._ends, index)
        file = self._files[which]
        number, line = file[index - (self._ends[which - 1] if which else 0)]
        return parse_line(line, Source(self._dataset, str(file.path), number))


def open_source(
    name: str,
    path: Path | None,
    subset: str | None = None,
    split: str = "train",
    sample_by: str = "document",
    is_streamed: bool = False,
) -> RowSource:
    """Returns the records of a local path, or of a data set on the Hub or in its cache.

    Args:
        name: Of the data set.
        path: A file, a directory or a pattern; None is the Hub.
        subset: Config of a data set on the Hub.
        split: Split of it.
        sample_by: What is one row of a text file.
        is_streamed: Read a data set of the Hub while it is used, instead of fetching it whole before.

    Raises:
        DataError: There is no such split, or nothing to read.
    """
    if path is None:
        return load_hub_rows(name, subset, split, is_streamed)
    folder = _of_split(path, split)
    if not is_pattern(str(folder)) and folder.is_dir() and (folder / "dataset_info.json").is_file():
        from datasets import load_from_disk

        return HubSource(load_from_disk(str(folder)), name, str(folder))
    return FileSource(folder, name, sample_by, split)


def _of_split(path: Path, split: str) -> Path:
    """Returns the directory of a split, if `datasets` saved several together, else the path itself."""
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        return path
    splits = json.loads(listing.read_text())["splits"]
    if split not in splits:
        hint = did_you_mean(split, splits) or f"; there are {', '.join(splits)}"
        raise DataError(f"{path}: unknown split '{split}'{hint}")
    return path / split
