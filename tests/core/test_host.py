# SPDX-License-Identifier: Apache-2.0
"""What a run knows of its machine."""

from __future__ import annotations

import subprocess
import sys

from oumi.core.host import peak_memory_bytes


def test_the_peak_of_memory_is_that_of_this_process_alone() -> None:
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from oumi.core.host import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 1_000_000 < child < 200_000_000
    assert peak_memory_bytes() > len(ballast)
