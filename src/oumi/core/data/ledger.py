# SPDX-License-Identifier: Apache-2.0
"""What became of every row: read = trained + truncated + rejected."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from oumi.core.errors import DataError
from oumi.core.types.example import BadRow

_MOST_SHOWN = 20
_TURN = re.compile(r"^turn \d+: ")


@dataclass
class Ledger:
    """The account of one data set."""

    dataset: str
    key: str = "data.train"
    """The split's section of the config."""
    max_rejected: int = 0
    read: int = 0
    trained: int = 0
    """Rows that are trained whole."""
    truncated: int = 0
    """Rows that are trained, but cut at the model's length."""
    rejected: list[BadRow] = field(default_factory=list)
    num_tokens: int = 0
    num_target_tokens: int = 0
    cut_tokens: int = 0
    cut_target_tokens: int = 0

    def reject(self, row: BadRow) -> None:
        """Notes a row that cannot be used."""
        self.read += 1
        self.rejected.append(row)

    def accept(self, num_tokens: int, num_targets: int, cut_tokens: int, cut_targets: int) -> None:
        """Notes a row that is trained, and what was cut off it."""
        self.read += 1
        self.truncated += cut_tokens > 0
        self.trained += cut_tokens == 0
        self.num_tokens += num_tokens
        self.num_target_tokens += num_targets
        self.cut_tokens += cut_tokens
        self.cut_target_tokens += cut_targets

    def close(self) -> None:
        """Checks that the account adds up; raises DataError if more rows were rejected than the config allows."""
        assert self.read == self.trained + self.truncated + len(self.rejected), "every row is counted once"
        if len(self.rejected) <= self.max_rejected:
            return
        shown = "\n".join(f"  {row}" for row in self.rejected[:_MOST_SHOWN])
        more = len(self.rejected) - _MOST_SHOWN
        rest = f"\n  ... and {more} more" if more > 0 else ""
        raise DataError(
            f"{self.dataset}: {len(self.rejected)} of {self.read} rows cannot be used\n{shown}{rest}\n"
            f"Mend them, or leave them out with {self.key}.max_rejected_rows: {len(self.rejected)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the account as JSON values."""
        return {
            "dataset": self.dataset,
            "rows": {
                "read": self.read,
                "trained": self.trained,
                "truncated": self.truncated,
                "rejected": len(self.rejected),
            },
            "tokens": {
                "read": self.num_tokens + self.cut_tokens,
                "trained": self.num_target_tokens,
                "prompt": self.num_tokens - self.num_target_tokens,
                "cut": self.cut_tokens,
                "cut_targets": self.cut_target_tokens,
            },
            "reasons": dict(Counter(_TURN.sub("", row.reason).partition(":")[0] for row in self.rejected)),
            "rejected": [str(row) for row in self.rejected[:_MOST_SHOWN]],
        }
