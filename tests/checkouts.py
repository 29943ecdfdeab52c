# SPDX-License-Identifier: Apache-2.0
"""Runs Python on the code of any checkout, so that two of them can be put side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
"""The checkout that this file belongs to."""


def run_in(checkout: Path, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with the code of a checkout, offline, and returns its exit status and what it printed.

    Args:
        checkout: Root of the checkout.
        arguments: Of the interpreter.
        folder: Working directory, created if needed; the token cache is kept in it, so an empty folder means no cache.
    """
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(checkout / "src"), str(checkout)]),
        "OUMI_CACHE_DIR": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",  # the order of a sum over threads would be a difference of its own
        "MKL_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def check_source(checkout: Path, folder: Path) -> None:
    """Raises RuntimeError unless `import oumi` takes the code of the checkout."""
    process = run_in(checkout, ["-c", "import oumi; print(oumi.__file__)"], folder)
    origin = process.stdout.strip()
    if process.returncode or not Path(origin).is_relative_to(checkout / "src"):
        raise RuntimeError(f"{checkout}: Python imports oumi from '{origin}'. {process.stderr[-400:]}")
