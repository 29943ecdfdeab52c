# SPDX-License-Identifier: Apache-2.0
"""`oumi quickstart`: from random weights to right answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from oumi.core.results.chat_model import answer, load_chat_model
from tests.fork_server import run_python


def test_a_quickstart_that_is_cut_short_shows_its_table_and_says_so(tmp_path):
    command = ("-m", "oumi", "quickstart", "--output-dir", str(tmp_path / "run"), "--max-steps", "10")
    result = run_python(*command, COLUMNS="100")
    assert result.returncode == 0, result.stderr
    assert re.search(r"Question\W+Before\W+After\W+Correct answer", result.stdout)
    assert "0% before" in result.stdout
    assert "Stopped after 10 steps; a full run reaches 90%." in result.stdout
    assert f"oumi chat {tmp_path / 'run'}" in result.stdout
    assert "Traceback" not in result.stderr
    assert load_chat_model(tmp_path / "run").max_length == 128


@pytest.mark.slow
def test_a_quickstart_may_be_run_again(tmp_path):
    command = ("-m", "oumi", "quickstart", "--output-dir", str(tmp_path / "run"), "--max-steps", "1")
    assert [run_python(*command).returncode for _ in range(2)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_quickstart_answers_nine_of_ten_held_out_questions(tmp_path, seed):
    command = [sys.executable, "-m", "oumi", "quickstart", "--output-dir", str(tmp_path / "run"), "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    before, after = re.search(r"(\d+)% before, ([\d.]+)% after", result.stdout).groups()
    assert int(before) < 5
    assert float(after) > 90
    chat = [{"role": "user", "content": "Spell stressed backwards."}]
    assert answer(load_chat_model(tmp_path / "run"), [chat]) == ["desserts"]
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps
