# SPDX-License-Identifier: Apache-2.0
"""Counts what happens to every row: read = trained + truncated + rejected."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from oumi.core.errors import DataError
from oumi.core.log import logger
from oumi.core.types.example import Encoded, RejectedRow, printable

_MAX_IN_REPORT, _MAX_IN_MESSAGE = 1000, 20
"""Rejected rows that the report lists, and those that the error message lists."""
_MAX_REASONS = 50
"""Different reasons that are counted by name; all others are counted together."""
_TURN = re.compile(r"^turn \d+: ")


@dataclass
class Counts:
    """Numbers of rows, examples and tokens of a data set."""

    read: int = 0
    trained: int = 0
    """Rows that are trained in full."""
    truncated: int = 0
    """Rows that are trained, but cut at the model's length."""
    rejected: int = 0
    split: int = 0
    """Trained or truncated rows that became several examples or documents."""
    examples: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    cut_tokens: int = 0
    cut_target_tokens: int = 0
    rejected_tokens: int = 0
    """Tokens of rows that were rejected after they were tokenized."""
    rejected_target_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows by reason."""
    shown: list[str] = field(default_factory=list)
    """The first rejected rows, each with its reason."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Number of trained rows by what the user should know of them."""
    # `to_state` writes the names of these fields into cached tables and checkpoints, so they must stay.

    def reject(self, row: RejectedRow) -> None:
        """Counts a rejected row."""
        self.read += 1
        self.rejected += 1
        self.rejected_tokens += row.num_tokens
        self.rejected_target_tokens += row.num_targets
        # Without the number of the turn, and what follows the colon, which is about this row alone.
        self._count_reason(printable(_TURN.sub("", row.reason).partition(":")[0]), 1)
        if len(self.shown) < _MAX_IN_REPORT:
            self.shown.append(str(row))

    def accept(self, row: Encoded) -> None:
        """Counts a trained row, and the tokens that were cut off it."""
        self.read += 1
        self.truncated += row.cut_tokens > 0
        self.trained += row.cut_tokens == 0
        self.split += row.is_split
        self.examples += len(row.examples)
        self.num_tokens += sum(len(example.tokens) for example in row.examples)
        self.num_target_tokens += sum(int(example.is_target.sum()) for example in row.examples)
        self.cut_tokens += row.cut_tokens
        self.cut_target_tokens += row.cut_targets
        self.remarks.update(row.remarks)

    def cut(self, num_rows: int, num_tokens: int) -> None:
        """Counts trained rows as truncated, which lose `num_tokens` trained tokens in all."""
        # Used for documents that are concatenated, which train each of their tokens: tokens and targets are equal.
        self.trained -= num_rows
        self.truncated += num_rows
        self.num_tokens -= num_tokens
        self.num_target_tokens -= num_tokens
        self.cut_tokens += num_tokens
        self.cut_target_tokens += num_tokens

    def add(self, other: Counts) -> None:
        """Adds the counts of more rows."""
        for column in fields(self):
            if column.name not in ("shown", "reasons", "remarks"):
                setattr(self, column.name, getattr(self, column.name) + getattr(other, column.name))
        for reason, number in other.reasons.items():
            self._count_reason(reason, number)
        self.remarks.update(other.remarks)
        self.shown = [*self.shown, *other.shown][:_MAX_IN_REPORT]

    def _count_reason(self, reason: str, number: int) -> None:
        is_over = reason not in self.reasons and len(self.reasons) >= _MAX_REASONS
        self.reasons["other reasons" if is_over else reason] += number

    def to_state(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        return {**values, "reasons": dict(self.reasons), "shown": list(self.shown), "remarks": dict(self.remarks)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Counts:
        """Returns the counts that `to_state` wrote."""
        # Checkpoints of earlier versions have no remarks.
        counters = {name: Counter(state.get(name, {})) for name in ("reasons", "remarks")}
        return cls(**{**state, **counters})


@dataclass
class Ledger:
    """The counts of one data set, and how many of its rows may be rejected."""

    dataset: str
    key: str = "data.train"
    """The split's section of the config, empty if it is in none."""
    max_rejected: int = 0
    counts: Counts = field(default_factory=Counts)
    drawn: int | None = None
    """Examples that an epoch draws from this data set, fewer or more than it has; None if not decided yet."""
    _warned: set[str] = field(default_factory=set)

    def warn(self, row: Encoded) -> None:
        """Logs what the user should know of a row, unless that was logged for a row before it."""
        for remark in row.remarks:
            self._warn(remark, str(row.examples[0].source))

    def _warn(self, remark: str, where: str) -> None:
        if remark not in self._warned:
            self._warned.add(remark)
            logger.warning("%s: %s", where, remark)

    def close(self) -> None:
        """Logs what the user should know of the rows.

        Raises:
            DataError: More rows were rejected than the config allows; the message has the first of them.
        """
        for remark, number in self.counts.remarks.items():
            self._warn(remark, f"{self.dataset}: {number} of {self.counts.read} rows")
        counts = self.counts
        assert counts.read == counts.trained + counts.truncated + counts.rejected, "every row is counted once"
        if not self.is_over:
            return
        shown = "\n".join(f"  {row}" for row in counts.shown[:_MAX_IN_MESSAGE])
        num_more = counts.rejected - _MAX_IN_MESSAGE
        rest = f"\n  ... and {num_more} more" if num_more > 0 else ""
        raise DataError(
            f"{self.dataset}: {counts.rejected} of {counts.read} rows cannot be used\n{shown}{rest}\n{self.advice}"
        )

    @property
    def is_over(self) -> bool:
        """Returns True if more rows were rejected than the config allows."""
        return self.counts.rejected > self.max_rejected

    @property
    def advice(self) -> str:
        """Returns how to deal with the rejected rows."""
        if not self.key:  # of a file that a command names
            return "Fix them, or remove them from the file"
        return f"Fix them, or leave them out with {self.key}.max_rejected_rows: {self.counts.rejected}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the section of this data set in `data_report.json`."""
        counts = self.counts
        drawn = {} if self.drawn is None else {"drawn": self.drawn}
        return {
            "dataset": self.dataset,
            "rows": {
                "read": counts.read,
                "trained": counts.trained,
                "truncated": counts.truncated,
                "rejected": counts.rejected,
                "split": counts.split,
            },
            "examples": {"made": counts.examples, **drawn},
            "tokens": {
                "read": counts.num_tokens + counts.cut_tokens + counts.rejected_tokens,
                "trained": counts.num_target_tokens,
                "prompt": counts.num_tokens - counts.num_target_tokens,
                "cut": counts.cut_tokens,
                "rejected": counts.rejected_tokens,
            },
            "targets": {
                "read": counts.num_target_tokens + counts.cut_target_tokens + counts.rejected_target_tokens,
                "trained": counts.num_target_tokens,
                "cut": counts.cut_target_tokens,
                "rejected": counts.rejected_target_tokens,
            },
            "reasons": dict(counts.reasons),
            "rejected": counts.shown,
            "remarks": dict(counts.remarks),
        }
