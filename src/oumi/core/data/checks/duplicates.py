# SPDX-License-Identifier: Apache-2.0
"""Finds duplicate rows by a digest of each row, reports them, and refuses them if the config says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.pipeline.concatenate import ConcatenatedTable
from oumi.core.data.pipeline.mixture import Part
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.store.token_table import TokenTable
from oumi.core.errors import DataError
from oumi.core.log import logger
from oumi.core.plan.parts import DataPlan

DUPLICATE_KINDS = {
    "rows": "rows that repeat another, token by token",
    "ids": "rows with the id of another",
    "trained": "rows that are in the training set, too",
}
"""Kinds of duplicates, and their descriptions."""
_MAX_LISTED = 10
"""Duplicates that are listed in a report."""
_MAX_LOGGED = 3
"""Duplicates that are listed in a warning."""
# `data_report.json` contains the keys of `DUPLICATE_KINDS` and of `Duplicates.to_dict`, so they must stay.


@dataclass(frozen=True)
class Duplicates:
    """Rows that are the same as an earlier one."""

    num_rows: int = 0
    listed: tuple[str, ...] = ()
    """The first of them, each with the row that it repeats."""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {"rows": self.num_rows, "first": list(self.listed)}


def count_duplicates(splits: Mapping[str, Sequence[Part]], may_wait: bool = False) -> dict[str, Any]:
    """Returns the duplicates of each split by their kind, as JSON values.

    Args:
        splits: The parts of `train` and of `validation`.
        may_wait: Wait for tables that are not complete yet; otherwise nothing is counted if there are any.
    """
    tables: dict[str, list[TokenTable]] = {}
    for split, parts in splits.items():
        tables[split] = []
        for part in parts:
            # Whole documents are compared, since the rows they are cut into begin anywhere in them.
            table = part.table.documents if isinstance(part.table, ConcatenatedTable) else part.table
            if isinstance(table, LazyTable):
                complete = table.complete() if may_wait else table.if_complete()
                if complete is None:
                    return {}
                table = complete
            assert isinstance(table, TokenTable), "it is complete, and not concatenated"
            tables[split].append(table)
    duplicates = {
        split: {"rows": repeated_rows(split_tables).to_dict(), "ids": repeated_ids(split_tables).to_dict()}
        for split, split_tables in tables.items()
        if split_tables
    }
    if tables.get("train") and tables.get("validation"):
        duplicates["validation"]["trained"] = shared_rows(tables["train"], tables["validation"]).to_dict()
    return duplicates


def warn_of_duplicates(duplicates: Mapping[str, Any]) -> None:
    """Logs the number of duplicates of each kind, and the first of them."""
    for split, kinds in duplicates.items():
        for kind, counts in kinds.items():
            if counts["rows"]:
                logger.warning("%s", _describe(split, kind, counts, _MAX_LOGGED))


def check_duplicates(duplicates: Mapping[str, Any], data: DataPlan) -> None:
    """Raises DataError if there are duplicates in a split whose config does not allow them."""
    problems = [
        _describe(split, kind, counts)
        for split, mixture in (("train", data.train), ("validation", data.validation))
        if mixture.on_duplicates == "error"
        for kind, counts in duplicates.get(split, {}).items()
        if counts["rows"]
    ]
    if problems:
        advice = "Remove them, or train with them: data.{train,validation}.on_duplicates: WARN"
        raise DataError("\n".join([*problems, advice]))


def _describe(split: str, kind: str, counts: Mapping[str, Any], max_listed: int | None = None) -> str:
    listed = counts["first"][:max_listed]
    lines = [f"data.{split}: {DUPLICATE_KINDS[kind]}: {counts['rows']:,}", *(f"  {line}" for line in listed)]
    if num_more := counts["rows"] - len(listed):
        lines.append(f"  ... and {num_more:,} more")
    return "\n".join(lines)


def repeated_rows(tables: Sequence[TokenTable]) -> Duplicates:
    """Returns the rows whose tokens and targets are those of an earlier row."""
    repeats, firsts = _find_repeats(_join_column(tables, "digest"))
    rows = _Rows(tables)
    numbers = rows.numbers()
    is_other = numbers[repeats] != numbers[firsts]  # a row that was split may repeat itself
    repeats, firsts = repeats[is_other], firsts[is_other]
    listed = [f"{rows.name(repeat)} repeats {rows.name(first)}" for repeat, first in _listed(repeats, firsts)]
    return Duplicates(len(repeats), tuple(listed))


def repeated_ids(tables: Sequence[TokenTable]) -> Duplicates:
    """Returns the rows that have the id of an earlier row of their data set."""
    # Table by table: two data sets may number their rows in the same way.
    num_rows, listed = 0, list[str]()
    for table in tables:
        ids, numbers = table.column("id"), table.column("row")
        # The parts of a row that was split share its id: only the first of them counts.
        is_first = np.diff(numbers, prepend=-1) != 0
        rows = np.flatnonzero((ids != 0) & is_first)
        # Digests of ids are compared; 0 means that a row has none.
        repeats, firsts = (rows[indices] for indices in _find_repeats(ids[rows]))
        num_rows += len(repeats)
        for repeat, first in _listed(repeats, firsts):
            source = table.source(repeat)
            listed.append(f"{source} has the id '{source.id}' of {table.source(first)}")
    return Duplicates(num_rows, tuple(listed[:_MAX_LISTED]))


def shared_rows(trained: Sequence[TokenTable], validation: Sequence[TokenTable]) -> Duplicates:
    """Returns the rows of the validation set that are in the training set, too."""
    trained_digests, digests = _join_column(trained, "digest"), _join_column(validation, "digest")
    shared = np.flatnonzero(np.isin(digests, trained_digests))
    # Only the rows that are listed are searched. The sort is stable, so that the search finds the first of each digest.
    order = np.argsort(trained_digests, kind="stable")
    firsts = order[np.searchsorted(trained_digests, digests[shared[:_MAX_LISTED]], sorter=order)]
    trained_rows, rows = _Rows(trained), _Rows(validation)
    listed = [f"{rows.name(row)} is also {trained_rows.name(first)}" for row, first in _listed(shared, firsts)]
    return Duplicates(len(shared), tuple(listed))


class _Rows:
    """The rows of several tables, end to end."""

    def __init__(self, tables: Sequence[TokenTable]) -> None:
        self._tables = tables
        self._ends = np.cumsum([len(table) for table in tables])

    def name(self, index: int) -> str:
        """Returns the file, the line and the id of a row."""
        i = int(np.searchsorted(self._ends, index, side="right"))
        source = self._tables[i].source(index - int(self._ends[i] - len(self._tables[i])))
        return f"{source} (id '{source.id}')" if source.id is not None else str(source)

    def numbers(self) -> npt.NDArray[np.int64]:
        """Returns a number for each row, the same for the parts of a row that was split."""
        numbers, highest = [np.zeros(0, dtype=np.int64)], 0
        for table in self._tables:
            # Numbers of a table begin at 1 again, so those of the tables before are added.
            numbers.append(table.column("row") + highest)
            highest = int(numbers[-1].max(initial=highest))
        return np.concatenate(numbers)


def _find_repeats(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the indices of values that occur before, in order, and the index of the first occurrence of each."""
    # A stable sort puts the first occurrence at the beginning of each run of equal values.
    order = np.argsort(values, kind="stable")
    begins = np.append(True, values[order][1:] != values[order][:-1])[: len(values)]
    firsts = order[begins][np.cumsum(begins) - 1]
    repeats = np.sort(order[~begins])
    # The inverse of `order` returns the first occurrences to the places of their values.
    return repeats, firsts[np.argsort(order, kind="stable")][repeats]


def _join_column(tables: Sequence[TokenTable], name: str) -> npt.NDArray[Any]:
    # The empty array is for a split without tables, of which there is nothing to concatenate.
    return np.concatenate([np.zeros(0, dtype=np.uint64), *(table.column(name) for table in tables)])


def _listed(rows: npt.NDArray[np.int64], firsts: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(rows[:_MAX_LISTED].tolist(), firsts[:_MAX_LISTED].tolist(), strict=True))
