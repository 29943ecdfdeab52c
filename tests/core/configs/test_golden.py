# SPDX-License-Identifier: Apache-2.0
"""Mistakes that people make in configs, and exactly what they are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
CHECK_ALL = """
import json, sys, time
from oumi.cli.config import check_file
from oumi.core.errors import OumiError
import oumi.core.configs, oumi.core.plan.refusals, oumi.core.recipes
found = {}
for name in sys.argv[1:]:
    started = time.perf_counter()
    try:
        check_file(name)
        told = "no problem"
    except OumiError as error:
        told = str(error)
    found[name] = [told, time.perf_counter() - started]
print(json.dumps({"found": found, "heavy": sorted({"torch", "numpy"} & sys.modules.keys())}))
"""


def test_every_mistake_is_reported_as_it_should_in_under_half_a_second_without_torch() -> None:
    names = sorted(path.name for path in GOLDEN.glob("*.yaml"))
    assert len(names) >= 40
    command = [sys.executable, "-c", CHECK_ALL, *names]
    result = json.loads(subprocess.run(command, cwd=GOLDEN, capture_output=True, text=True, check=True).stdout)
    assert not result["heavy"]
    for name in names:
        messages, seconds = result["found"][name]
        assert messages + "\n" == (GOLDEN / name).with_suffix(".txt").read_text()
        assert seconds < 0.5
