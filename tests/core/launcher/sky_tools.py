# SPDX-License-Identifier: Apache-2.0
"""A stand-in for SkyPilot's environment: a command `sky`, whose Python has only `fake_sky`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FAKE = Path(__file__).with_name("fake_sky")


def install_fake_sky(folder: Path) -> Path:
    """Returns the path of the command `sky` in a new environment, whose clusters are directories of `folder/home`."""
    home, python, command = folder / "home", folder / "bin" / "python", folder / "bin" / "sky"
    home.mkdir(parents=True)
    python.parent.mkdir()
    variables = f"FAKE_SKY_HOME={shlex.quote(str(home))} PYTHONPATH={shlex.quote(str(FAKE))} PYTHONDONTWRITEBYTECODE=1"
    python.write_text(f'#!/bin/sh\nexport {variables}\nexec {shlex.quote(sys.executable)} "$@"\n')
    command.write_text(f"#!{python}\nimport sky\n")
    for file in (python, command):
        file.chmod(0o755)
    return command
