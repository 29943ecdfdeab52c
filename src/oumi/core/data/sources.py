# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: files, a directory that `datasets` saved, or the Hub. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol

from oumi.core.configs.data import is_pattern
from oumi.core.data.files import files_of, is_compressed, of_split
from oumi.core.data.json_rows import parse_line
from oumi.core.data.lines import LineIndex, index_lines
from oumi.core.data.readers import count_rows, is_lines, read_rows, without_nulls
from oumi.core.data.resumable import FileReader, HubReader, ListReader, Place, RowReader, size_of
from oumi.core.errors import DataError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.types.example import BadRow, Row, Source, row_of

_CHUNK_BYTES = 1 << 24
_LARGE_BYTES = 16_000_000
LARGE_ROWS = 20_000
_RATIO = 4
"""Of a text to the file in which it is compressed, roughly."""


class Rows(Protocol):
    """The records of a data set, as they are stored."""

    def __iter__(self) -> Iterator[Row | BadRow]: ...

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
        """Returns True if it takes several processes seconds to tokenise them."""
        ...


class IndexedRows(Protocol):
    """Records of which any is found at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row | BadRow: ...


class FileRows:
    """The records of one or more files."""

    def __init__(self, path: Path, dataset: str, sample_by: str = "document", split: str = "train") -> None:
        """Takes a file, a directory or a pattern; see `read_rows` for `sample_by`, and `of_split` for `split`."""
        self._files = of_split(files_of(path), path, split) if path.is_dir() else files_of(path)
        self._dataset = dataset
        self._sample_by = sample_by

    def __iter__(self) -> Iterator[Row | BadRow]:
        return chain.from_iterable(read_rows(one, self._dataset, self._sample_by) for one in self._files)

    def count(self) -> int | None:
        """Returns how many there are, None where only reading would tell."""
        counts = [count_rows(one) for one in self._files]
        return None if None in counts else sum(one or 0 for one in counts)

    def content(self) -> dict[str, str]:
        """Returns the SHA-256 of each file, by name."""
        digests = {f"{i} {one.name}": digest_of(one) for i, one in enumerate(self._files)}
        return digests | {"sample_by": self._sample_by}

    def indexed(self) -> IndexedRows | None:
        """Returns the records as a list, if all files are JSON Lines."""
        return _Lines([index_lines(one) for one in self._files], self._dataset) if self._are_lines() else None

    def reader(self, place: Place | None) -> FileReader:
        """Returns a reader that goes on at a place."""
        return FileReader(self._files, self._sizes, self._dataset, self._sample_by, place)

    @cached_property
    def _sizes(self) -> list[int | None]:
        """Returns how many bytes each file had when the first reader began."""
        return [size_of(one) for one in self._files]

    def sizes(self) -> dict[str, str]:
        """Returns the size of each file, by name."""
        sizes = {f"{i} {one.name}": str(size_of(one)) for i, one in enumerate(self._files)}
        return sizes | {"sample_by": self._sample_by}

    @property
    def is_large(self) -> bool:
        """Returns True for files of many megabytes."""
        return sum(one.stat().st_size * (_RATIO if is_compressed(one) else 1) for one in self._files) > _LARGE_BYTES

    def _are_lines(self) -> bool:
        return all(is_lines(one) for one in self._files)


class _Lines:
    """The lines of several files as one list."""

    def __init__(self, files: list[LineIndex], dataset: str) -> None:
        self._files = files
        self._dataset = dataset
        self._ends = list(accumulate(len(one) for one in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row | BadRow:
        which = bisect_right(self._ends, index)
        file = self._files[which]
        number, line = file[index - (self._ends[which - 1] if which else 0)]
        return parse_line(line, Source(self._dataset, str(file.path), number))


class HubRows:
    """The records of a split that the library `datasets` has loaded."""

    def __init__(self, rows: Any, dataset: str, place: str) -> None:
        """Takes what `datasets` loaded, and where it stands."""
        self._rows = _undecoded(rows)
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | BadRow]:
        for i, value in enumerate(self._rows):
            yield row_of(without_nulls(value), Source(self._dataset, self._place, i))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row | BadRow:
        return row_of(without_nulls(self._rows[index]), Source(self._dataset, self._place, index))

    def count(self) -> int | None:
        """Returns how many there are."""
        return len(self._rows)

    def content(self) -> dict[str, str]:
        """Returns the digest of each file of the split, and which rows of them are taken."""
        files = {Path(one["filename"]) for one in self._rows.cache_files}
        digests = {f"{i} {one.name}": digest_of(one) for i, one in enumerate(sorted(files))}
        return digests | {"rows": f"{self._place} {len(self._rows)}"}

    def indexed(self) -> IndexedRows | None:
        """Returns itself."""
        return self

    def reader(self, place: Place | None) -> ListReader:
        """Returns a reader that goes on at a place."""
        return ListReader(len(self), self.__getitem__, place)

    def sizes(self) -> dict[str, str]:
        """Returns how many rows there are."""
        return {"rows": f"{self._place} {len(self)}"}

    @property
    def is_large(self) -> bool:
        """Returns True for many rows."""
        return len(self._rows) > LARGE_ROWS


class HubStream:
    """The records of a split that is read from the Hub while it is used."""

    is_large = False

    def __init__(self, open_rows: Callable[[], Any], dataset: str, place: str) -> None:
        """Takes what opens a stream of `datasets`, each with a position of its own, and where the rows stand."""
        self._open = open_rows
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | BadRow]:
        for i, value in enumerate(_undecoded(self._open())):
            yield row_of(without_nulls(value), Source(self._dataset, self._place, i))

    def count(self) -> int | None:
        """Returns None: only reading would tell."""
        return None

    def content(self) -> dict[str, str]:
        """Returns the name alone; what it stands for is not read before it is used."""
        return self.sizes()

    def indexed(self) -> IndexedRows | None:
        """Returns None: rows come in order."""
        return None

    def reader(self, place: Place | None) -> HubReader:
        """Returns a reader that goes on at a place."""
        return HubReader(_undecoded(self._open()), self._dataset, self._place, place)

    def sizes(self) -> dict[str, str]:
        """Returns the name."""
        return {"stream": self._place}


def rows_of(
    name: str,
    path: Path | None,
    subset: str | None = None,
    split: str = "train",
    sample_by: str = "document",
    is_streamed: bool = False,
) -> Rows:
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
        return _from_hub(name, subset, split, is_streamed)
    folder = _of_split(path, split)
    if not is_pattern(str(folder)) and folder.is_dir() and (folder / "dataset_info.json").is_file():
        from datasets import load_from_disk

        return HubRows(load_from_disk(str(folder)), name, str(folder))
    return FileRows(folder, name, sample_by, split)


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    if is_data_lines(path):
        return index_lines(path).digest
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_data_lines(path: Path) -> bool:
    """Returns True for a file that is indexed by lines, and so has been read whole."""
    return path.suffix.lower() in (".jsonl", ".json") and path.stat().st_size > 0 and is_lines(path)


def _from_hub(name: str, subset: str | None, split: str, is_streamed: bool) -> HubRows | HubStream:
    place = f"{name}[{split}]"

    def load() -> Any:
        from datasets import load_dataset

        with hub_errors("data set", name):
            try:
                return load_dataset(name, name=subset, split=split, streaming=is_streamed)
            except ValueError as error:
                if "split" in str(error) or "config" in str(error).lower():
                    raise DataError(f"data set {name}: {str(error).splitlines()[0]}") from error
                raise

    return HubStream(load, name, place) if is_streamed else HubRows(load(), name, place)


def _undecoded(rows: Any) -> Any:
    """Returns rows whose pictures stay bytes: whether one can be decoded is told for its row."""
    if not rows.features:
        return rows
    features = {name: _without_decoding(kind) for name, kind in rows.features.items()}
    return rows.cast(type(rows.features)(features)) if features != dict(rows.features) else rows


def _without_decoding(kind: Any) -> Any:
    """Returns the type of a column with its pictures, also those in lists and structs, as bytes."""
    from datasets import Image, LargeList, List

    if isinstance(kind, Image):
        return Image(decode=False)
    if isinstance(kind, (List, LargeList)):
        return replace(kind, feature=_without_decoding(kind.feature))
    if isinstance(kind, dict):
        return {name: _without_decoding(one) for name, one in kind.items()}
    return [_without_decoding(one) for one in kind] if isinstance(kind, list) else kind


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
