# SPDX-License-Identifier: Apache-2.0
"""Reads a split of a data set on the Hub: downloaded first, or streamed during training. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oumi.core.data.sources.reader import HubReader, IteratorReader, Place
from oumi.core.data.sources.tabular import digest_of, without_nulls
from oumi.core.errors import DataError
from oumi.core.hub import hub_errors
from oumi.core.types.example import RejectedRow, Row, Source, row_of

if TYPE_CHECKING:
    from oumi.core.data.sources.source import IndexedRows

LARGE_ROWS = 20_000
"""Rows that take several processes seconds to tokenize. Bytes are not known without reading them."""


class HubSource:
    """The records of a split that `datasets` has loaded."""

    def __init__(self, rows: Any, dataset: str, place: str) -> None:
        """Sets the data set of `datasets`, its name, and what messages name as its path."""
        self._rows = _undecoded(rows)
        self._dataset = dataset
        self._place = place
        self.is_large = len(rows) > LARGE_ROWS

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        for i, value in enumerate(self._rows):  # reads in batches, unlike one index after the other
            yield row_of(without_nulls(value), Source(self._dataset, self._place, i))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row | RejectedRow:
        return row_of(without_nulls(self._rows[index]), Source(self._dataset, self._place, index))

    def count(self) -> int | None:
        """Returns the number of records."""
        return len(self._rows)

    def content(self, is_streamed: bool = False) -> dict[str, str]:
        """Returns the name of the split with the number of its rows and, unless `is_streamed`, digests of its files."""
        # A split expression such as `train[:100]` shares its files with others; its name and rows tell them apart.
        rows = {"rows": f"{self._place} {len(self._rows)}"}
        if is_streamed:
            return rows
        files = {Path(file["filename"]) for file in self._rows.cache_files}
        digests = {f"{i} {file.name}": digest_of(file) for i, file in enumerate(sorted(files))}
        return digests | rows

    def indexed(self) -> IndexedRows | None:
        """Returns the source itself, which has random access."""
        return self

    def reader(self, place: Place | None) -> IteratorReader:
        """Returns a reader that starts at a place, or at the first record."""
        first = place["row"] if place else 0
        return IteratorReader(map(self.__getitem__, range(first, len(self))), first)


class HubStreamSource:
    """The records of a split that is streamed from the Hub."""

    is_large = False  # a stream is tokenized during training, so no processes do it before

    def __init__(self, open_rows: Callable[[], Any], dataset: str, place: str) -> None:
        """Sets the function that opens a new stream of `datasets`, the name of the data set, and that of its split."""
        self._open = open_rows
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        for i, value in enumerate(_undecoded(self._open())):
            yield row_of(without_nulls(value), Source(self._dataset, self._place, i))

    def count(self) -> int | None:
        """Returns None: the number of records is known only after reading them."""
        return None

    def content(self, is_streamed: bool = True) -> dict[str, str]:
        """Returns the name of the split alone, since its files are not downloaded."""
        return {"stream": self._place}

    def indexed(self) -> IndexedRows | None:
        """Returns None: a stream has no random access."""
        return None

    def reader(self, place: Place | None) -> HubReader:
        """Returns a reader that starts at a place, or at the first record."""
        return HubReader(_undecoded(self._open()), self._dataset, self._place, place)


def load_hub_rows(name: str, subset: str | None, split: str, is_streamed: bool) -> HubSource | HubStreamSource:
    """Returns a split of a data set on the Hub; raises DataError if there is no such subset or split."""
    place = f"{name}[{split}]"

    def load() -> Any:
        from datasets import load_dataset

        with hub_errors("data set", name):
            try:
                return load_dataset(name, name=subset, split=split, streaming=is_streamed)
            except ValueError as error:
                # `datasets` raises a plain ValueError for an unknown split or config, with a list of the valid ones.
                if "split" in str(error) or "config" in str(error).lower():
                    raise DataError(f"data set {name}: {str(error).splitlines()[0]}") from error
                raise

    return HubStreamSource(load, name, place) if is_streamed else HubSource(load(), name, place)


def _undecoded(rows: Any) -> Any:
    """Returns rows whose images stay bytes.

    Otherwise `datasets` decodes them while it reads, and a broken image fails without the row that contains it.
    """
    if not rows.features:  # of some streams, columns are known only after reading rows
        return rows
    features = {name: _without_decoding(kind) for name, kind in rows.features.items()}
    return rows.cast(type(rows.features)(features)) if features != dict(rows.features) else rows


def _without_decoding(kind: Any) -> Any:
    """Returns the type of a column with all images in it, also within lists and structs, as bytes."""
    from datasets import Image, LargeList, List

    if isinstance(kind, Image):
        return Image(decode=False)
    if isinstance(kind, (List, LargeList)):
        return replace(kind, feature=_without_decoding(kind.feature))
    if isinstance(kind, dict):
        return {name: _without_decoding(inner) for name, inner in kind.items()}
    return [_without_decoding(inner) for inner in kind] if isinstance(kind, list) else kind
