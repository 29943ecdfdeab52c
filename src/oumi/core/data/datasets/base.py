# SPDX-License-Identifier: Apache-2.0
"""Rows by their place: what every data set has, and the class for rows of any kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oumi.core.data.pipeline.concatenate import Concatenation
from oumi.core.data.records.fields import UnusableValue
from oumi.core.data.records.schemas import detect_shape, to_value
from oumi.core.data.sources.jsonl import shown
from oumi.core.data.sources.memory import LimitedSource, MemorySource
from oumi.core.data.sources.reader import IteratorReader, Place, RowReader
from oumi.core.data.sources.source import IndexedRows, RowSource, open_source
from oumi.core.data.sources.tabular import digest_of
from oumi.core.errors import ConfigError, DataError, did_you_mean
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Completion, Judged, Preference, Prompt, RejectedRow, Row, Text

VALUES = (Conversation, Completion, Text, Preference, Judged, Prompt)
"""What a row may stand for."""


class BaseMapDataset:
    """RowSource, each of which stands for something to learn.

    Override `transform`, and `_load_data` where the rows are neither in files nor on the Hub.
    """

    default_dataset: str | None = None
    """Id on the Hub, when the config names no other."""
    default_subset: str | None = None
    """Subset on the Hub, when the config names none."""
    is_local = False
    """There is nothing on the Hub: a path or the rows themselves must be given."""
    sample_by = "document"
    """What is one row of a text file."""
    limit: int | None = None
    """Take only so many of the first rows."""
    is_streamed = False
    """Rows of the Hub are read while they are used."""
    concatenation: Concatenation | None = None
    """Not None: documents are joined end to end, and cut into rows of one length."""
    holds = "chats"
    """Which kind of value the rows stand for."""
    of_elements: frozenset[str] = frozenset()
    """Arguments that decide what `self[i]` is, which no run reads."""
    _shape: str | None = None
    """The shape of mappings that `transform` returns; None finds it by looking."""
    _hook = "transform"
    _expected = "a Conversation"

    def __init__(
        self,
        *,
        dataset_name: str | None = None,
        dataset_path: str | None = None,
        split: str | None = "train",
        subset: str | None = None,
        data: Sequence[Mapping[str, Any]] | None = None,
        trust_remote_code: bool = False,
        transform_num_workers: int | str | None = None,
    ) -> None:
        """Takes which rows to read, as the config names them, or the rows themselves.

        Args:
            dataset_name: Id on the Hub, or a name for messages.
            dataset_path: File, directory or pattern.
            split: Part of the data set.
            subset: Config name of a data set on the Hub.
            data: RowSource, instead of a path.
            trust_remote_code: Of a processor; no data set runs code of the Hub.
            transform_num_workers: Taken for the sake of old code: a run says how many processes make its tokens.
        """
        self.dataset_name = dataset_name or self.default_dataset or ""
        self.dataset_path = Path(dataset_path).expanduser() if dataset_path else None
        self.split = split
        self.subset = subset or self.default_subset
        self.trust_remote_code = trust_remote_code
        self.transform_num_workers = transform_num_workers
        self._records = data
        name = self.dataset_name or type(self).__name__
        if data is not None and dataset_path:
            raise ConfigError(f"data set '{name}': takes 'data' or dataset_path, and got both")
        if self.is_local and data is None and not dataset_path:
            raise ConfigError(f"data set '{name}': needs dataset_path, a file, a directory or a pattern")

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns what a row stands for: one of VALUES, or a mapping of a shape that is known."""
        raise NotImplementedError(f"{type(self).__name__} must define transform")

    def rows(self) -> Iterator[Row | RejectedRow]:
        """Yields each row as what it stands for, or as one that cannot be used."""
        for row in self.raw_rows():
            yield self.value_of(row)

    def raw_rows(self) -> Iterator[Row | RejectedRow]:
        """Yields the rows of the local files, or of the data set on the Hub."""
        return iter(self.stored)

    @cached_property
    def stored(self) -> RowSource:
        """Returns the rows as they are stored."""
        if self.is_in_memory:
            records = self._records if self._records is not None else vars(self).get("_data")
            place = f"{self.dataset_name or type(self).__name__}[{self.split or 'train'}]"
            rows: RowSource = MemorySource(self._load_data() if records is None else records, self.dataset_name, place)
        else:
            rows = self._read()
        return rows if self.limit is None else LimitedSource(rows, self.limit)

    def _load_data(self) -> Any:
        """Returns the rows: mappings in a list, or a table of pandas. Override it where no file holds them."""
        rows = []
        # Not `self.stored`, which would call the method of a subclass that calls this one.
        for row in self._read():
            if isinstance(row, RejectedRow):
                raise DataError(str(row))
            rows.append(row.value)
        return rows

    def _read(self) -> RowSource:
        split, sample_by = self.split or "train", self.sample_by
        return open_source(self.dataset_name, self.dataset_path, self.subset, split, sample_by, self.is_streamed)

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader of the rows that goes on at a place; `value_of` says what each stands for."""
        if self.is_stored:
            return self.stored.reader(place)
        # Code of the class has no place to resume at, so it yields the rows before it again.
        first = place["row"] if place else 0
        return IteratorReader(islice(self.rows(), first, None), first)

    @property
    def is_in_memory(self) -> bool:
        """Returns True if the rows are in memory: given, or returned by `_load_data`."""
        return self._records is not None or type(self)._load_data is not BaseMapDataset._load_data

    @property
    def is_stored(self) -> bool:
        """Returns True if the rows are read, not made one by one by code of the class."""
        return type(self).raw_rows is BaseMapDataset.raw_rows and type(self).rows is BaseMapDataset.rows

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a row as what it stands for, or as one that cannot be used."""
        if isinstance(row, RejectedRow) or isinstance(row.value, VALUES):
            return row
        try:
            value = self.transform(row.value)
            if isinstance(value, VALUES):
                return Row(value, row.source)
            if isinstance(value, Mapping):
                return to_value(Row(value, row.source), self._shape or detect_shape(value))
            reason = f"{self._hook} returned {type(value).__name__}, not {self._expected}"
        except KeyError as error:
            reason = f"has no column {error}{_near(error, row.value)}"
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
            AssertionError,
            UnusableValue,
        ) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        return RejectedRow(row.source, reason, shown(row.value))

    def count(self) -> int | None:
        """Returns how many rows there are, None where only reading would tell."""
        is_here = (self.dataset_path is not None or self.is_in_memory) and self.concatenation is None
        return self.stored.count() if is_here and self.is_stored else None

    def content(self) -> dict[str, str] | None:
        """Returns digests of all that decides what the rows are, None where that is more than files."""
        if not self.is_stored:
            return None
        stored = self.stored.sizes() if self.is_streamed else self.stored.content()
        if stored is None:
            return None
        try:
            code = {class_.__module__: digest_of(Path(inspect.getfile(class_))) for class_ in type(self).__mro__[:-1]}
        except (TypeError, OSError):  # written at a prompt or in a notebook
            return None
        return {**stored, **code}

    def indexed(self) -> IndexedRows | None:
        """Returns the stored rows as a list of which any is found at once, None where there is none."""
        return self.stored.indexed() if self.is_stored else None

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, index: int) -> Any:
        return self.element(self._row_at(index))

    def raw(self, index: int) -> Any:
        """Returns a row as it is stored."""
        return self._row_at(index).value

    def as_generator(self) -> Iterator[Any]:
        """Yields every element, in order."""
        for index in range(len(self)):
            yield self[index]

    def to_hf(self, return_iterable: bool = False) -> Any:
        """Returns the elements as a data set of the library `datasets`: a table, or one that is read in order."""
        from datasets import Dataset, IterableDataset

        if return_iterable:
            return IterableDataset.from_generator(self.as_generator)
        return Dataset.from_list(list(self.as_generator()))

    def element(self, row: Row) -> Any:
        """Returns what `self[i]` is: the row after `transform`, as the kind of the data set has it."""
        return self.transform(row.value)

    def value_at(self, index: int) -> Any:
        """Returns what a row stands for; raises DataError if it cannot be used."""
        return self._checked(self._row_at(index)).value

    def _checked(self, row: Row) -> Row:
        value = self.value_of(row)
        if isinstance(value, RejectedRow):
            raise DataError(str(value))
        return value

    def _row_at(self, index: int) -> Row:
        row = self._listed[range(len(self))[index]]
        if isinstance(row, RejectedRow):
            raise DataError(str(row))
        return row

    @cached_property
    def _listed(self) -> IndexedRows:
        indexed = self.indexed()
        return list(self.raw_rows()) if indexed is None else indexed


class BaseIterableDataset(BaseMapDataset):
    """Rows that are read in order. Override `transform`."""

    def __init__(self, *, stream: bool = True, **named: Any) -> None:
        """Takes `stream` for the sake of old code: rows are read as they are needed in any case."""
        super().__init__(**named)
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return self.as_generator()

    def as_generator(self) -> Iterator[Any]:
        """Yields every element, in order."""
        for row in self.raw_rows():
            if isinstance(row, RejectedRow):
                raise DataError(str(row))
            yield self.element(row)


def _near(error: KeyError, row: Any) -> str:
    name = error.args[0] if error.args else None
    return did_you_mean(name, map(str, row)) if isinstance(name, str) and isinstance(row, Mapping) else ""
