# SPDX-License-Identifier: Apache-2.0
"""What became of every row: read = trained + truncated + rejected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from oumi.core.errors import DataError
from oumi.core.types.example import Example, RejectedRow, printable

_MOST_KEPT, _MOST_SHOWN = 1000, 20
"""Of the rejected rows: those in the report, and those in the message that stops a run."""
_MOST_REASONS = 50
_TURN = re.compile(r"^turn \d+: ")


@dataclass
class Counts:
    """How many rows and tokens went where."""

    read: int = 0
    trained: int = 0
    """Rows that are trained whole."""
    truncated: int = 0
    """Rows that are trained, but cut at the model's length."""
    rejected: int = 0
    split: int = 0
    """Rows among the trained that came to several examples or documents."""
    examples: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    cut_tokens: int = 0
    cut_target_tokens: int = 0
    rejected_tokens: int = 0
    """Of rejected rows that were tokenized before they were found to be of no use."""
    rejected_target_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rows were rejected."""
    shown: list[str] = field(default_factory=list)
    """The first rejected rows, each with its reason."""

    def reject(self, row: RejectedRow) -> None:
        """Notes a row that cannot be used."""
        self.read += 1
        self.rejected += 1
        self.rejected_tokens += row.num_tokens
        self.rejected_target_tokens += row.num_targets
        self._count_reason(printable(_TURN.sub("", row.reason).partition(":")[0]), 1)
        if len(self.shown) < _MOST_KEPT:
            self.shown.append(str(row))

    def accept(self, examples: Sequence[Example], cut_tokens: int, cut_targets: int) -> None:
        """Notes a row that is trained, and what was cut off it."""
        self.read += 1
        self.truncated += cut_tokens > 0
        self.trained += cut_tokens == 0
        self.split += sum(len(example.starts) for example in examples) > 1
        self.examples += len(examples)
        self.num_tokens += sum(len(example.tokens) for example in examples)
        self.num_target_tokens += sum(int(one.is_target.sum()) for one in examples)
        self.cut_tokens += cut_tokens
        self.cut_target_tokens += cut_targets

    def cut(self, num_rows: int, num_tokens: int) -> None:
        """Notes that the ends of some rows, all of which were to be trained, are not."""
        self.trained -= num_rows
        self.truncated += num_rows
        self.num_tokens -= num_tokens
        self.num_target_tokens -= num_tokens
        self.cut_tokens += num_tokens
        self.cut_target_tokens += num_tokens

    def add(self, other: Counts) -> None:
        """Adds what became of more rows."""
        for column in fields(self):
            if column.name not in ("shown", "reasons"):
                setattr(self, column.name, getattr(self, column.name) + getattr(other, column.name))
        for reason, number in other.reasons.items():
            self._count_reason(reason, number)
        self.shown = [*self.shown, *other.shown][:_MOST_KEPT]

    def _count_reason(self, reason: str, number: int) -> None:
        is_new = reason not in self.reasons and len(self.reasons) >= _MOST_REASONS
        self.reasons["other reasons" if is_new else reason] += number

    def to_state(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        return {**values, "reasons": dict(self.reasons), "shown": list(self.shown)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Counts:
        """Returns what `to_state` gave."""
        return cls(**{**state, "reasons": Counter(state["reasons"])})


@dataclass
class Ledger:
    """The account of one data set."""

    dataset: str
    key: str = "data.train"
    """The split's section of the config."""
    max_rejected: int = 0
    counts: Counts = field(default_factory=Counts)
    drawn: int | None = None
    """Examples of an epoch that are drawn from this data set, where a mixture takes fewer or more than there are."""

    def close(self) -> None:
        """Checks that the account adds up; raises DataError if more rows were rejected than the config allows."""
        counts = self.counts
        assert counts.read == counts.trained + counts.truncated + counts.rejected, "every row is counted once"
        if not self.is_over:
            return
        shown = "\n".join(f"  {row}" for row in counts.shown[:_MOST_SHOWN])
        more = counts.rejected - _MOST_SHOWN
        rest = f"\n  ... and {more} more" if more > 0 else ""
        raise DataError(
            f"{self.dataset}: {counts.rejected} of {counts.read} rows cannot be used\n{shown}{rest}\n{self.advice}"
        )

    @property
    def is_over(self) -> bool:
        """Returns True if more rows were rejected than the config allows."""
        return self.counts.rejected > self.max_rejected

    @property
    def advice(self) -> str:
        """Returns what one may do about rejected rows."""
        return f"Mend them, or leave them out with {self.key}.max_rejected_rows: {self.counts.rejected}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the account as JSON values."""
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
        }
