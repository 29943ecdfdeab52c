# SPDX-License-Identifier: Apache-2.0
"""The comparison of trainers measures what it says, and rejects runs that did not do the same work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.trainers import TRAINERS, Timing, check_losses, table


def timing(speed: float, *losses: float) -> Timing:
    return Timing(tokens_per_second=speed, cpu_us_per_token=1e6 / speed, peak_gb=1.0, losses=losses)


def test_the_table_shows_medians_and_ratios() -> None:
    shown = table({"OUMI": [timing(v, 1.0) for v in (100, 400, 200)], "HF": [timing(50, 1.0)]}).splitlines()
    assert shown[1].split() == ["OUMI", "200", "5000.0", "1.00", "1.00", "1.00", "1.00"]
    assert shown[2].split() == ["HF", "50", "20000.0", "1.00", "4.00", "4.00", "1.00"]


def test_times_of_other_work_are_rejected() -> None:
    check_losses({"OUMI": [timing(1, 2.0, 1.0)], "HF": [timing(1, 2.0, 1.0005)]})
    with pytest.raises(SystemExit, match="HF: losses differ by"):
        check_losses({"OUMI": [timing(1, 2.0, 1.0)], "HF": [timing(1, 2.0, 1.01)]})


@pytest.mark.slow
def test_the_comparison_runs_as_documented() -> None:
    command = [sys.executable, "-m", "benchmarks.trainers", "--repeats", "1", "--steps", "8", "--hidden-size", "64"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == list(TRAINERS)
