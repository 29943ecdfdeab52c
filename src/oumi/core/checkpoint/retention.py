# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oumi.core.checkpoint.store import remove


def keep_last(saved: Sequence[Path], num_kept: int | None) -> list[Path]:
    """Deletes all but the last `num_kept` of the checkpoints that this run saved, and returns those left.

    Args:
        saved: The run's own checkpoints, oldest first. What others left in the directory is not touched.
        num_kept: None keeps all.
    """
    if num_kept is None or len(saved) <= num_kept:
        return list(saved)
    for checkpoint in saved[:-num_kept]:
        if checkpoint.exists():
            remove(checkpoint)
    return list(saved[-num_kept:])
