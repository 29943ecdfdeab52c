# SPDX-License-Identifier: Apache-2.0
"""Deletes old checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oumi.core.checkpoint.store import remove


def keep_last(saved: Sequence[Path], num_kept: int | None) -> list[Path]:
    """Deletes all but the last `num_kept` checkpoints of this run, and returns the remaining ones.

    Args:
        saved: The checkpoints of this run, oldest first. No other directory is deleted.
        num_kept: Number of checkpoints to keep, None to keep all.
    """
    if num_kept is None or len(saved) <= num_kept:
        return list(saved)
    for checkpoint in saved[:-num_kept]:
        if checkpoint.exists():  # the user may have deleted it
            remove(checkpoint)
    return list(saved[-num_kept:])
