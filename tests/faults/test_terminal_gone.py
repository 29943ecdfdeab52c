# SPDX-License-Identifier: Apache-2.0
"""A run outlives the terminal, pipe or disk that it prints to, and its log file has everything."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from oumi.core.system.terminal import lasting_output
from oumi.core.train import train
from tests.fork_server import run_python
from tests.runs import losses, tiny_config

STEPS = 6
LOSE = {
    "a closed pipe": "r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.dup2(w, 2)",
    "a full disk": "w = os.open('/dev/full', os.O_WRONLY); os.dup2(w, 1); os.dup2(w, 2)",
    "closed descriptors": "os.close(1); os.close(2); sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None",
}
RUN = """
import io, os, sys
{}
sys.argv = ["oumi", "{}", "-c", "config.yaml"]
from oumi.cli.main import run
try:
    run()
finally:
    if sys.stdout is None:  # which the server of this test flushes
        sys.stdout = sys.stderr = io.StringIO()
"""


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
@pytest.mark.parametrize("lost", LOSE)
@pytest.mark.sample
def test_a_run_goes_on_without_its_output(tmp_path: Path, lost: str, trainer: str) -> None:
    config = tiny_config(tmp_path, trainer_type=trainer, max_steps=STEPS, logging_steps=1)
    config.to_yaml(tmp_path / "config.yaml")
    done = run_python("-c", RUN.format(LOSE[lost], "train"), folder=tmp_path)
    assert done.returncode == 0
    assert len(losses(tmp_path / "out")) == STEPS
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert f"step {STEPS}/{STEPS}" in (tmp_path / "out" / "logs" / "rank_0000.log").read_text()


class Breaking(io.StringIO):
    """A stream whose terminal is gone after some writes."""

    def __init__(self, num_writes: int) -> None:
        super().__init__()
        self.num_writes = num_writes

    def write(self, text: str) -> int:
        self.num_writes -= 1
        if self.num_writes < 0:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("num_writes", [0, 7])
def test_a_notebook_whose_output_breaks_keeps_its_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    stream = Breaking(num_writes)
    monkeypatch.setattr(sys, "stderr", stream)
    train(tiny_config(tmp_path, max_steps=STEPS, logging_steps=1))
    assert sys.stderr is stream
    assert stream.num_writes < 0
    assert len(losses(tmp_path / "out")) == STEPS


def test_what_can_be_written_is_written_and_mistakes_are_raised() -> None:
    code = (
        "from oumi.core.system.terminal import lasting_output\nwith lasting_output():\n"
        "    print('kept', flush=True)\n    1 / 0"
    )
    done = run_python("-c", code)
    assert done.stdout == "kept\n"
    assert "ZeroDivisionError" in done.stderr
    with lasting_output(), pytest.raises(TypeError):
        sys.stdout.write(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", LOSE)
@pytest.mark.parametrize(
    "call", ["stdout.writelines(['a\\n'] * 9999)", "stdout.buffer.write(b'a' * 99999)", "stderr.buffer.flush()"]
)
def test_no_way_to_write_passes_by_the_guard(lost: str, call: str) -> None:
    code = (
        f"import os, sys\n{LOSE[lost]}\nfrom oumi.core.system.terminal import lasting_output\nwith lasting_output():\n"
        f"    sys.{call}\n    print('a' * 99999, flush=True)\nos._exit(0)"
    )
    assert run_python("-c", code).returncode == 0


def test_a_command_that_is_not_a_run_reports_that_it_could_not_print(tmp_path: Path) -> None:
    tiny_config(tmp_path, max_steps=1).to_yaml(tmp_path / "config.yaml")
    assert run_python("-c", RUN.format(LOSE["a full disk"], "plan"), folder=tmp_path).returncode != 0
