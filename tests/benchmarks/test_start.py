# SPDX-License-Identifier: Apache-2.0
"""The start of a command and the first step of a run are timed from outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.peers import ENVIRONMENTS
from benchmarks.start import STARTS, main, seconds, seconds_to_first_step


def test_a_command_that_fails_is_not_timed() -> None:
    assert seconds([sys.executable, "-c", "import time; time.sleep(0.2)"]) > 0.2
    with pytest.raises(subprocess.CalledProcessError):
        seconds([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.slow
def test_a_first_step_is_timed() -> None:
    assert 0.5 < seconds_to_first_step() < 120


def test_no_turns_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "--repeats must be 1 or more" in capsys.readouterr().err


def test_every_peer_has_its_environment() -> None:
    # That with the packages of adapters starts the same commands.
    assert {start.environment for start in STARTS} == {None, *ENVIRONMENTS} - {"trl_peft"}
