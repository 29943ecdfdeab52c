# SPDX-License-Identifier: Apache-2.0
"""Deletes old checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oumi.core.checkpoint.store import remove


def keep_last(saved: Sequence[Path], num_kept: int | None, best: Path | None = None) -> list[Path]:
    """Deletes all but the best and the last `num_kept` checkpoints of this run, and returns the remaining ones.

    Args:
        saved: The checkpoints of this run, oldest first. No other directory is deleted.
        num_kept: Number of checkpoints to keep, None to keep all.
        best: The one of the best evaluation, which is kept whatever its age; None if no evaluation decides.
    """
    if num_kept is None or len(saved) <= num_kept:
        return list(saved)
    old = [checkpoint for checkpoint in saved[:-num_kept] if checkpoint != best]
    for checkpoint in old:
        if checkpoint.exists():  # the user may have deleted it
            remove(checkpoint)
    return [checkpoint for checkpoint in saved if checkpoint not in old]
