# SPDX-License-Identifier: Apache-2.0
"""Rows that stand in the data of a run more than once: counted, told, and perhaps not allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oumi.core.data.growing import GrowingTable
from oumi.core.data.joining import Joined
from oumi.core.data.mixture import Part
from oumi.core.data.repeats import repeated_ids, repeated_rows, shared_rows
from oumi.core.data.tokens import TokenTable
from oumi.core.errors import DataError
from oumi.core.log import logger
from oumi.core.plan.parts import DataPlan

TOLD = {
    "rows": "rows that repeat another, token by token",
    "ids": "rows with the id of another",
    "trained": "rows that stand in the training set, too",
}
_MOST_TOLD = 3


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
                logger.warning("%s", _told(split, kind, one, _MOST_TOLD))


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
    lines = [f"data.{split}: {TOLD[kind]}: {found['rows']:,}", *(f"  {one}" for one in named)]
    return "\n".join([*lines, *([f"  ... and {more:,} more"] if more else [])])


def _whole(part: Part, may_wait: bool) -> TokenTable | None:
    table = part.table.documents if isinstance(part.table, Joined) else part.table
    if isinstance(table, GrowingTable):
        return table.complete() if may_wait else table.if_complete()
    assert isinstance(table, TokenTable), "there are two kinds of tables"
    return table
