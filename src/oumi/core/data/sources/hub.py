# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set on the Hub: a split that is fetched whole, or read while it is used. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oumi.core.data.sources.reader import HubReader, ListReader, Place
from oumi.core.data.sources.tabular import digest_of, without_nulls
from oumi.core.errors import DataError
from oumi.core.hub import hub_errors
from oumi.core.types.example import RejectedRow, Row, Source, row_of

if TYPE_CHECKING:
    from oumi.core.data.sources.source import IndexedRows

LARGE_ROWS = 20_000


class HubSource:
    """The records of a split that the library `datasets` has loaded."""

    def __init__(self, rows: Any, dataset: str, place: str) -> None:
        """Takes what `datasets` loaded, and where it stands."""
        self._rows = _undecoded(rows)
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | RejectedRow]:
        for i, value in enumerate(self._rows):
            yield row_of(without_nulls(value), Source(self._dataset, self._place, i))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row | RejectedRow:
        return row_of(without_nulls(self._rows[index]), Source(self._dataset, self._place, index))

    def count(self) -> int | None:
        """Returns how many there are."""
        return len(self._rows)

    def content(self) -> dict[str, str]:
        """Returns the digest of each file of the split, and which rows of them are taken."""
        files = {Path(file["filename"]) for file in self._rows.cache_files}
        digests = {f"{i} {file.name}": digest_of(file) for i, file in enumerate(sorted(files))}
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


class HubStreamSource:
    """The records of a split that is read from the Hub while it is used."""

    is_large = False

    def __init__(self, open_rows: Callable[[], Any], dataset: str, place: str) -> None:
        """Takes what opens a stream of `datasets`, each with a position of its own, and where the rows stand."""
        self._open = open_rows
        self._dataset = dataset
        self._place = place

    def __iter__(self) -> Iterator[Row | RejectedRow]:
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


def load_hub_rows(name: str, subset: str | None, split: str, is_streamed: bool) -> HubSource | HubStreamSource:
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

    return HubStreamSource(load, name, place) if is_streamed else HubSource(load(), name, place)


def _undecoded(rows: Any) -> Any:
    """Returns rows whose images stay bytes: whether one can be decoded is told for its row."""
    if not rows.features:
        return rows
    features = {name: _without_decoding(kind) for name, kind in rows.features.items()}
    return rows.cast(type(rows.features)(features)) if features != dict(rows.features) else rows


def _without_decoding(kind: Any) -> Any:
    """Returns the type of a column with its images, also those in lists and structs, as bytes."""
    from datasets import Image, LargeList, List

    if isinstance(kind, Image):
        return Image(decode=False)
    if isinstance(kind, (List, LargeList)):
        return replace(kind, feature=_without_decoding(kind.feature))
    if isinstance(kind, dict):
        return {name: _without_decoding(inner) for name, inner in kind.items()}
    return [_without_decoding(inner) for inner in kind] if isinstance(kind, list) else kind
