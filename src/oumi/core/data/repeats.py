# SPDX-License-Identifier: Apache-2.0
"""Rows that stand in the data more than once: found by a digest that each table keeps of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.tokens import TokenTable

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
