# SPDX-License-Identifier: Apache-2.0
"""Rows that stand in the data more than once: counted by a digest of each row, reported, and perhaps refused."""

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

KIND_TEXTS = {
    "rows": "rows that repeat another, token by token",
    "ids": "rows with the id of another",
    "trained": "rows that stand in the training set, too",
}
_MAX_LISTED = 3


def may_grow(data: DataPlan) -> bool:
    """Returns True if the training may begin before it is known which rows repeat others."""
    return "error" not in (data.train.on_duplicates, data.validation.on_duplicates)


def count_duplicates(splits: Mapping[str, Sequence[Part]], may_wait: bool = False) -> dict[str, Any]:
    """Returns which rows repeat others, by split, as JSON values.

    Args:
        splits: The parts of `train` and of `validation`.
        may_wait: Wait for tables that are still being made; otherwise nothing is counted while there are any.
    """
    tables: dict[str, list[TokenTable]] = {}
    for split, parts in splits.items():
        whole = [_whole(part, may_wait) for part in parts]
        if None in whole:
            return {}
        tables[split] = [one for one in whole if one is not None]
    found = {
        split: {"rows": repeated_rows(of_split).to_dict(), "ids": repeated_ids(of_split).to_dict()}
        for split, of_split in tables.items()
        if of_split
    }
    if tables.get("train") and tables.get("validation"):
        found["validation"]["trained"] = shared_rows(tables["train"], tables["validation"]).to_dict()
    return found


def warn_of_duplicates(duplicates: Mapping[str, Any]) -> None:
    """Logs how many rows repeat others, and the first of them."""
    for split, of_split in duplicates.items():
        for kind, one in of_split.items():
            if one["rows"]:
                logger.warning("%s", _told(split, kind, one, _MAX_LISTED))


def check_duplicates(duplicates: Mapping[str, Any], data: DataPlan) -> None:
    """Raises DataError if rows repeat others in a split that does not allow it."""
    problems = [
        _told(split, kind, one, None)
        for split, mixed in (("train", data.train), ("validation", data.validation))
        if mixed.on_duplicates == "error"
        for kind, one in duplicates.get(split, {}).items()
        if one["rows"]
    ]
    if problems:
        rest = "Leave them out, or go on with them: data.{train,validation}.on_duplicates: WARN"
        raise DataError("\n".join([*problems, rest]))


def _told(split: str, kind: str, found: Mapping[str, Any], most: int | None) -> str:
    """Returns a sentence, and the first of the rows below it."""
    named = found["first"][:most]
    more = found["rows"] - len(named)
    lines = [f"data.{split}: {KIND_TEXTS[kind]}: {found['rows']:,}", *(f"  {one}" for one in named)]
    return "\n".join([*lines, *([f"  ... and {more:,} more"] if more else [])])


def _whole(part: Part, may_wait: bool) -> TokenTable | None:
    table = part.table.documents if isinstance(part.table, ConcatenatedTable) else part.table
    if isinstance(table, LazyTable):
        return table.complete() if may_wait else table.if_complete()
    assert isinstance(table, TokenTable), "there are two kinds of tables"
    return table


_MOST_NAMED = 10


@dataclass(frozen=True)
class Repeats:
    """Rows that are the same as one before them."""

    num_rows: int = 0
    named: tuple[str, ...] = ()
    """The first of them, each with the row that it repeats."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as JSON values."""
        return {"rows": self.num_rows, "first": list(self.named)}


def repeated_rows(tables: Sequence[TokenTable]) -> Repeats:
    """Returns the rows that repeat another one, token by token and target by target."""
    found, firsts = _repeated(_joined(tables, "digest"))
    rows = _Rows(tables)
    is_other = rows.places()[found] != rows.places()[firsts]  # a row that was split may repeat itself
    found, firsts = found[is_other], firsts[is_other]
    return _named(found, [f"{rows.name(a)} repeats {rows.name(b)}" for a, b in _first(found, firsts)])


def repeated_ids(tables: Sequence[TokenTable]) -> Repeats:
    """Returns the rows that call themselves as another one of their data set does."""
    num_rows, named = 0, list[str]()
    for table in tables:
        ids, places = table.column("id"), _Rows([table]).places()
        begins = np.append(True, places[1:] != places[:-1]) if len(places) else np.zeros(0, dtype=np.bool_)
        rows = np.flatnonzero((ids != 0) & begins)
        found, firsts = (rows[one] for one in _repeated(ids[rows]))
        num_rows += len(found)
        named += [
            f"{table.source(a)} has the id '{table.source(a).id}' of {table.source(b)}"
            for a, b in _first(found, firsts)
        ]
    return Repeats(num_rows, tuple(named[:_MOST_NAMED]))


def shared_rows(first: Sequence[TokenTable], second: Sequence[TokenTable]) -> Repeats:
    """Returns the rows of the second split that stand in the first one, too."""
    known, digests = _joined(first, "digest"), _joined(second, "digest")
    found = np.flatnonzero(np.isin(digests, known))
    order = np.argsort(known, kind="stable")
    firsts = order[np.searchsorted(known, digests[found[:_MOST_NAMED]], sorter=order)]
    there, here = _Rows(first), _Rows(second)
    pairs = zip(found[:_MOST_NAMED].tolist(), firsts.tolist(), strict=True)
    return _named(found, [f"{here.name(a)} is also {there.name(b)}" for a, b in pairs])


class _Rows:
    """The rows of several tables, end to end."""

    def __init__(self, tables: Sequence[TokenTable]) -> None:
        self._tables = tables
        self._ends = np.cumsum([len(one) for one in tables])

    def name(self, index: int) -> str:
        which = int(np.searchsorted(self._ends, index, side="right"))
        source = self._tables[which].source(index - int(self._ends[which] - len(self._tables[which])))
        return f"{source} (id '{source.id}')" if source.id is not None else str(source)

    def places(self) -> npt.NDArray[np.int64]:
        """Returns a number for each row, the same for the parts of one that was split."""
        places, highest = list[npt.NDArray[np.int64]](), 0
        for table in self._tables:
            places.append(table.column("row") + highest)
            highest = int(places[-1].max(initial=highest))
        return np.concatenate([np.zeros(0, dtype=np.int64), *places])


def _repeated(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the places, in order, of values that stand before, too, and where each of them stands first."""
    order = np.argsort(values, kind="stable")
    begins = np.append(True, values[order][1:] != values[order][:-1])[: len(values)]
    firsts = order[begins][np.cumsum(begins) - 1]
    found = np.sort(order[~begins])
    return found, firsts[np.argsort(order, kind="stable")][found]


def _joined(tables: Sequence[TokenTable], name: str) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=np.uint64), *(one.column(name) for one in tables)])


def _first(found: npt.NDArray[np.int64], firsts: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(found[:_MOST_NAMED].tolist(), firsts[:_MOST_NAMED].tolist(), strict=True))


def _named(found: npt.NDArray[np.int64], names: list[str]) -> Repeats:
    return Repeats(len(found), tuple(names))
