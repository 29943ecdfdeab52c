# SPDX-License-Identifier: Apache-2.0
"""The base classes of data sets, for rows of any kind."""

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
from oumi.core.system.filesystem import expanded
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Completion, Judged, Preference, Prompt, RejectedRow, Row, Text

VALUES = (Conversation, Completion, Text, Preference, Judged, Prompt)
"""The types of converted rows, which a run can tokenize."""

_ROW_ERRORS = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, UnusableValue,
)  # fmt: skip
"""Errors of user code that reject a row. Others, such as OSError, are not about the row and stop the run."""


class BaseMapDataset:
    """A data set with random access.

    Override `transform`, and `_load_data` if the rows are neither in files nor on the Hub.
    """

    default_dataset: str | None = None
    """Id on the Hub, unless the config names another."""
    default_subset: str | None = None
    """Subset on the Hub, unless the config names another."""
    is_local = False
    """It is not on the Hub, so a path or the rows themselves are required."""
    sample_by = "document"
    """Unit of a text file that is one row."""
    limit: int | None = None
    """Maximum number of rows; the first ones are taken."""
    is_streamed = False
    """Rows of the Hub are streamed during training."""
    concatenation: Concatenation | None = None
    """If set, documents are joined end to end and cut into rows of one length."""
    holds: type = Conversation
    """Type of the converted rows; the method of a run requires one of several."""
    of_elements: frozenset[str] = frozenset()
    """Arguments that change only the elements `self[i]`, which user code reads but no run."""
    _shape: str | None = None
    """Shape of the mappings that `transform` returns; None detects it."""
    # The method that users override and the type that it must return, for messages.
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
        """Sets which rows to read. No file is opened before they are used.

        Args:
            dataset_name: Id on the Hub, or a name for messages.
            dataset_path: File, directory or pattern.
            split: Split of the data set.
            subset: Config name of a data set on the Hub.
            data: The rows themselves, instead of a path.
            trust_remote_code: Allow a processor to run code of the Hub. No data set does.
            transform_num_workers: Not used, kept for compatibility: a run sets its number of processes.

        Raises:
            ConfigError: There are both rows and a path, or neither for a local data set.
        """
        self.dataset_name = dataset_name or self.default_dataset or ""
        self.dataset_path = expanded(dataset_path) if dataset_path else None
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
        """Returns a row converted to one of VALUES, or to a mapping of a known shape."""
        raise NotImplementedError(f"{type(self).__name__} must define transform")

    def rows(self) -> Iterator[Row | RejectedRow]:
        """Yields each row converted, or with the reason why it cannot be used."""
        for row in self.raw_rows():
            yield self.value_of(row)

    def raw_rows(self) -> Iterator[Row | RejectedRow]:
        """Yields the rows as they are stored, in order."""
        return iter(self.stored)

    @cached_property
    def stored(self) -> RowSource:
        """Returns the source of the stored rows, with the limit."""
        if self.is_in_memory:
            # `__init__` of a subclass may load the rows to `_data` already, so they are not loaded again.
            records = self._records if self._records is not None else vars(self).get("_data")
            place = f"{self.dataset_name or type(self).__name__}[{self.split or 'train'}]"
            rows: RowSource = MemorySource(self._load_data() if records is None else records, self.dataset_name, place)
        else:
            rows = self._read()
        return rows if self.limit is None else LimitedSource(rows, self.limit)

    def _load_data(self) -> Any:
        """Returns the rows: a list of mappings, or a pandas data frame. Override it to load or change them in code."""
        rows = []
        # Not `self.stored`, which would call the method of a subclass that calls this one.
        for row in self._read():
            if isinstance(row, RejectedRow):
                raise DataError(str(row))
            rows.append(row.value)
        return rows

    def _read(self) -> RowSource:
        """Opens the files or the data set on the Hub."""
        split, sample_by = self.split or "train", self.sample_by
        return open_source(self.dataset_name, self.dataset_path, self.subset, split, sample_by, self.is_streamed)

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader of the stored rows that starts at a place, or at the first row."""
        if self.is_stored:
            return self.stored.reader(place)
        # A generator of the class cannot start at a place, so the rows before it are generated again.
        first = place["row"] if place else 0
        return IteratorReader(islice(self.rows(), first, None), first)

    @property
    def is_in_memory(self) -> bool:
        """Returns True if the rows are passed as `data`, or loaded by a `_load_data` of the class."""
        return self._records is not None or type(self)._load_data is not BaseMapDataset._load_data

    @property
    def is_stored(self) -> bool:
        """Returns True unless the class generates the rows by its own `raw_rows` or `rows`."""
        return type(self).raw_rows is BaseMapDataset.raw_rows and type(self).rows is BaseMapDataset.rows

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a row converted, or the reason why it cannot be used."""
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
            # `transform` may also raise it without a name, or for a mapping within the row.
            name = error.args[0] if error.args else None
            hint = ""
            if isinstance(name, str) and isinstance(row.value, Mapping):
                hint = did_you_mean(name, map(str, row.value))
            reason = f"has no column {error}{hint}"
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except _ROW_ERRORS as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        return RejectedRow(row.source, reason, shown(row.value))

    def count(self) -> int | None:
        """Returns the number of rows, None if it is known only after reading, downloading or joining them."""
        is_local = self.dataset_path is not None or self.is_in_memory
        return self.stored.count() if is_local and self.concatenation is None and self.is_stored else None

    def content(self) -> dict[str, str] | None:
        """Returns digests of the files of the rows and of the code that converts them, None if they depend on more."""
        if not self.is_stored:
            return None
        stored = self.stored.content(self.is_streamed)
        if stored is None:
            return None
        # The last class of the order is `object`.
        try:
            code = {class_.__module__: digest_of(Path(inspect.getfile(class_))) for class_ in type(self).__mro__[:-1]}
        except (TypeError, OSError):  # a class of a prompt or a notebook has no file
            return None
        return {**stored, **code}

    def indexed(self) -> IndexedRows | None:
        """Returns the stored rows with random access, None if they can only be read in order."""
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
        """Returns the elements as a `datasets.Dataset`, or as an `IterableDataset` that computes them on the fly."""
        from datasets import Dataset, IterableDataset

        if return_iterable:
            return IterableDataset.from_generator(self.as_generator)
        return Dataset.from_list(list(self.as_generator()))

    def element(self, row: Row) -> Any:
        """Returns the element `self[i]` of a stored row: the row after `transform`. Subclasses tokenize it."""
        return self.transform(row.value)

    def value_at(self, index: int) -> Any:
        """Returns a row converted; raises DataError if it cannot be used."""
        return self._checked(self._row_at(index)).value

    def _checked(self, row: Row) -> Row:
        value = self.value_of(row)
        if isinstance(value, RejectedRow):
            raise DataError(str(value))
        return value

    def _row_at(self, index: int) -> Row:
        row = self._listed[range(len(self))[index]]  # the range handles negative indices, and raises IndexError
        if isinstance(row, RejectedRow):
            raise DataError(str(row))
        return row

    @cached_property
    def _listed(self) -> IndexedRows:
        # Without random access, all rows are read once and kept.
        indexed = self.indexed()
        return list(self.raw_rows()) if indexed is None else indexed


class BaseIterableDataset(BaseMapDataset):
    """A data set that is read in order. Override `transform`."""

    def __init__(self, *, stream: bool = True, **named: Any) -> None:
        """Accepts `stream` for compatibility only: rows are always read as they are needed."""
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
