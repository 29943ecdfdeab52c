# SPDX-License-Identifier: Apache-2.0
"""What rows are asked to teach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """Which tokens are trained, and what becomes of rows that are too long."""

    train_on: str
    """`all`, `all_assistant_turns` or `final_assistant_turn`; `nothing` for prompts."""
    max_length: int | None = None
    """Tokens that a row may have; None sets no limit."""
    truncation: str | None = None
    """`right`, `left`, `reject` or `split`; None leaves it to the kind of row."""
    tool_results: tuple[str, str] | None = None
    """What opens and closes the results of tools that stand within answers, and are not trained."""
