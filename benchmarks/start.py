# SPDX-License-Identifier: Apache-2.0
"""The time of each framework to print its help, and of Oumi to its first step.

Each command runs in the environment of its peer, which `benchmarks.sft_cpu` makes, too; commands take turns, and the
first turn, which fills the caches of files, does not count. First steps of the peers stand in the tables of
`benchmarks.sft_cpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import ENVIRONMENTS
from benchmarks.sft.environments import ready_python
from benchmarks.sft.measure import wait_for
from benchmarks.sft.workload import write_rows
from oumi.core.system.host import describe_host


@dataclass(frozen=True)
class TimedCommand:
    """A command whose start is timed."""

    words: tuple[str, ...]
    environment: str | None = None
    """None is that of this repository."""

    @property
    def title(self) -> str:
        """Returns its name in the table."""
        return f"`{' '.join(self.words)}`" + (f", {self.environment}" if self.environment else "")


STARTS = (
    TimedCommand(("oumi", "--help")),
    TimedCommand(("oumi", "train", "--help")),
    TimedCommand(("trl", "--help"), "trl"),
    TimedCommand(("trl", "sft", "--help"), "trl"),
    TimedCommand(("oumi", "--help"), "oumi09"),
    TimedCommand(("oumi", "train", "--help"), "oumi09"),
    TimedCommand(("llamafactory-cli", "help"), "llamafactory"),
    TimedCommand(("litgpt", "finetune_full", "--help"), "litgpt"),
)
_NUM_ROWS = 64


def main(words: Sequence[str] | None = None) -> None:
    """Times every command, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", action="store_true", help="without the peers")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/oumi/benchmarks"), help="for environments")
    arguments = parser.parse_args(words)
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    cache = arguments.cache.expanduser().absolute()
    starts = [start for start in STARTS if start.environment is None or not arguments.ours]
    folders = {start: _scripts(start.environment, cache) for start in starts}
    times: dict[str, list[float]] = {start.title: [] for start in starts}
    first_steps: list[float] = []
    for turn in range(arguments.repeats + 1):  # the first one fills the caches of files
        for start in starts if turn % 2 == 0 else reversed(starts):
            times[start.title].append(seconds([str(folders[start] / start.words[0]), *start.words[1:]]))
        first_steps.append(seconds_to_first_step())
    host = describe_host()
    print(f"{host.device_name}, {host.num_cpus} CPUs; medians of {arguments.repeats}\n\n| | s |\n|---|---:|")
    for title, values in {**times, "`oumi train`, a tiny model, to its first step": first_steps}.items():
        print(f"| {title} | {statistics.median(values[1:]):.2f} |")


def seconds(command: Sequence[str]) -> float:
    """Returns the duration of a command. Raises CalledProcessError if it fails."""
    started = time.monotonic()
    subprocess.run(command, env=_variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def seconds_to_first_step() -> float:
    """Returns the time from the start of a process to the end of the first step of a tiny model."""
    with tempfile.TemporaryDirectory() as name:
        folder, metrics = Path(name), Path(name) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "oumi", "train", "-c", str(write_config(folder, metrics.parent))]
        started = time.monotonic()
        with subprocess.Popen(command, env=_variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            duration = wait_for(metrics, child) - started
        if child.returncode or not metrics.exists():
            raise subprocess.CalledProcessError(child.returncode, command)
        return duration


def write_config(folder: Path, output: Path) -> Path:
    """Writes a run of a few steps on a few chats, and returns the path of its config."""
    chats = ({"prompt": f"How many is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(_NUM_ROWS))
    rows = write_rows(folder / "rows.jsonl", list(chats))
    config = {
        "model": {"model_name": "oumi://tiny", "load_pretrained_weights": False},
        "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(rows)}]}},
        "training": {
            "trainer_type": "OUMI",
            "output_dir": str(output),
            "max_steps": 5,
            "save_steps": 0,
            "save_final_model": False,
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def _scripts(environment: str | None, cache: Path) -> Path:
    """Returns the folder of an environment's commands."""
    if environment is None:
        return Path(sys.executable).parent
    return ready_python(cache / environment, ENVIRONMENTS[environment]).parent


def _variables() -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**variables, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


if __name__ == "__main__":
    main()
