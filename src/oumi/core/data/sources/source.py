# SPDX-License-Identifier: Apache-2.0
"""Opens the rows of files, of a directory saved by `datasets`, or of the Hub. Imports no torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Protocol

from oumi.core.configs.data import is_pattern, is_split_expression
from oumi.core.data.sources.files import files_of, is_compressed
from oumi.core.data.sources.hub import HubSource, load_hub_rows
from oumi.core.data.sources.jsonl import LineIndex, index_lines, parse_line
from oumi.core.data.sources.reader import FileReader, Place, RowReader, size_of
from oumi.core.data.sources.tabular import count_rows, digest_of, is_lines, read_rows
from oumi.core.errors import DataError, did_you_mean
from oumi.core.types.example import RejectedRow, Row, Source

_LARGE_BYTES = 16_000_000
_COMPRESSION_RATIO = 4
"""A typical ratio for text, good enough to decide whether a file is large."""


class RowSource(Protocol):
    """The stored records of a data set."""

    def __iter__(self) -> Iterator[Row | RejectedRow]: ...

    def count(self) -> int | None:
        """Returns the number of records, None if it is known only after reading them."""
        ...

    def content(self, is_streamed: bool = False) -> Mapping[str, str] | None:
        """Returns what identifies the records, by name: digests, or sizes if `is_streamed`, when nothing is read ahead.

        None if the records are not plain values.
        """
        ...

    def indexed(self) -> IndexedRows | None:
        """Returns the records with random access, None if they can only be read in order."""
        ...

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that starts at a place, or at the first record."""
        ...

    @property
    def is_large(self) -> bool:
        """Returns True if tokenizing the records is worth several processes."""
        ...


class IndexedRows(Protocol):
    """Records with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row | RejectedRow: ...


class FileSource:
    """The records of one or more files."""

    def __init__(self, path: Path, dataset: str, sample_by: str = "document", split: str = "train") -> None:
        """Finds the files of a path; see `files_of` for `path` and `split`, and `read_rows` for `sample_by`."""
        self._files = files_of(path, split)
        self._dataset = dataset
        self._sample_by = sample_by

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        return chain.from_iterable(read_rows(path, self._dataset, self._sample_by) for path in self._files)

    def count(self) -> int | None:
        """Returns the number of records, None if it is known only after reading them."""
        counts = [count_rows(path) for path in self._files]
        return None if None in counts else sum(count or 0 for count in counts)

    def content(self, is_streamed: bool = False) -> dict[str, str]:
        """Returns the SHA-256 of each file by name, or its size in bytes if `is_streamed`."""
        # Files in different folders may have the same name; their number tells them apart.
        content = {
            f"{i} {path.name}": str(size_of(path)) if is_streamed else digest_of(path)
            for i, path in enumerate(self._files)
        }
        return content | {"sample_by": self._sample_by}

    def indexed(self) -> IndexedRows | None:
        """Returns the records with random access if all files are uncompressed JSON Lines."""
        if not all(is_lines(path) for path in self._files):
            return None
        return _Lines([index_lines(path) for path in self._files], self._dataset)

    def reader(self, place: Place | None) -> FileReader:
        """Returns a reader that starts at a place, or at the first record."""
        return FileReader(self._files, self._sizes, self._dataset, self._sample_by, place)

    @cached_property
    def _sizes(self) -> list[int | None]:
        """Returns the number of bytes of each file when the first reader was opened, so that all find a change."""
        return [size_of(path) for path in self._files]

    @property
    def is_large(self) -> bool:
        """Returns True if the files have many megabytes, uncompressed."""
        ratios = [_COMPRESSION_RATIO if is_compressed(path) else 1 for path in self._files]
        sizes = [path.stat().st_size for path in self._files]
        return sum(size * ratio for size, ratio in zip(sizes, ratios, strict=True)) > _LARGE_BYTES


class _Lines:
    """The lines of several files, with random access."""

    def __init__(self, files: list[LineIndex], dataset: str) -> None:
        self._files = files
        self._dataset = dataset
        self._ends = list(accumulate(len(file) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row | RejectedRow:
        file_index = bisect_right(self._ends, index)  # the first file that ends after `index`, so never an empty one
        file = self._files[file_index]
        number, line = file[index - (self._ends[file_index - 1] if file_index else 0)]
        return parse_line(line, Source(self._dataset, str(file.path), number))


def open_source(
    name: str,
    path: Path | None,
    subset: str | None = None,
    split: str = "train",
    sample_by: str = "document",
    is_streamed: bool = False,
) -> RowSource:
    """Returns the records of a local path, or of a data set on the Hub.

    Args:
        name: Name of the data set; its id if it is on the Hub.
        path: A file, a directory or a pattern; None reads the Hub.
        subset: Config of a data set on the Hub.
        split: Split to read.
        sample_by: Unit of a text file that is one row.
        is_streamed: Read a data set of the Hub during training, instead of downloading it first.

    Raises:
        DataError: There is no such split, or nothing to read.
    """
    if path is None:
        return load_hub_rows(name, subset, split, is_streamed)
    if is_split_expression(split):
        raise DataError(f"{path}: split '{split}': parts of local data are not supported")
    # `DatasetDict.save_to_disk` writes one folder per split and lists them in a file.
    listing = path / "dataset_dict.json"
    if listing.is_file():
        splits = json.loads(listing.read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            hint = did_you_mean(split, splits) or f"; there are {', '.join(splits)}"
            raise DataError(f"{path}: unknown split '{split}'{hint}")
        path = path / split
    if not is_pattern(str(path)) and (path / "dataset_info.json").is_file():
        from datasets import load_from_disk

        return HubSource(load_from_disk(str(path)), name, str(path))
    return FileSource(path, name, sample_by, split)
