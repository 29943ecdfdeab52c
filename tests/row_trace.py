# SPDX-License-Identifier: Apache-2.0
"""The way of a row from its file to a batch, counted in a real run: the rooms it passes, and the calls between them.

A run of one step over three chats is watched. Counted are calls between functions below `oumi/core` that are made
while a row is in hand: while a function that reads the training data or a function of the loader is on the stack, or
in a thread that such a function starts. Each pair of caller and callee counts once, however many rows pass, so that
the number does not depend on how often a loop turns or on how threads take turns. Code that runs while a module is
imported does not count, nested functions count as the function around them, and a room is the folder of a module.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NamedTuple

ENTRIES = re.compile(r"(trainers/rows|data/training_data)\.py:(load|read)_\w+|data/(\w+/)*loader\.py:.*")
"""Functions whose callees have a row in hand, in the layouts that checkouts of this project have had."""


class Station(NamedTuple):
    """A function that a row passes."""

    file: str
    """Its file, relative to `oumi/core`."""
    function: str

    @property
    def room(self) -> str:
        """The folder of its module."""
        folder = str(PurePosixPath(self.file).parent)
        return "core" if folder == "." else folder

    @property
    def top_room(self) -> str:
        """The folder below `oumi/core` that its module is in."""
        return self.room.partition("/")[0]


Call = tuple[Station, Station]


class Recorder:
    """Collects the calls between functions below a folder that are made with a row in hand."""

    def __init__(self, core: Path, entries: re.Pattern[str] = ENTRIES) -> None:
        self.calls: set[Call] = set()
        self._prefix = f"{core}/"
        self._entries = entries
        self._starters: dict[threading.Thread, Station] = {}

    def start(self) -> None:
        """Watches this thread, and all that are started from here on."""
        threading.setprofile(self._watch)
        sys.setprofile(self._watch)

    def stop(self) -> None:
        """Watches no more."""
        sys.setprofile(None)
        threading.setprofile(None)

    def _watch(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        if frame.f_code is threading.Thread.start.__code__:
            stack = self._stack(frame)
            if self._has_row(stack):
                self._starters[frame.f_locals["self"]] = stack[0]
        elif frame.f_code.co_filename.startswith(self._prefix):
            stack = self._stack(frame)
            if len(stack) > 1 and self._has_row(stack[1:]):
                self.calls.add((stack[1], stack[0]))

    def _stack(self, frame: FrameType) -> list[Station]:
        """Returns the functions on the stack, the innermost first; none if they run for an import."""
        stations = []
        for outer in _frames(frame):
            code = outer.f_code
            if not code.co_filename.startswith(self._prefix):
                continue
            if not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or a class
                return []
            function = code.co_qualname.partition(".<locals>")[0]
            stations.append(Station(code.co_filename.removeprefix(self._prefix), function))
        starter = self._starters.get(threading.current_thread())
        return [*stations, starter] if starter else stations

    def _has_row(self, stack: list[Station]) -> bool:
        is_inherited = threading.current_thread() in self._starters
        return bool(stack) and (is_inherited or any(self._entries.fullmatch(":".join(station)) for station in stack))


def count_calls(calls: set[Call]) -> dict[str, float]:
    """Returns the figures of the calls that were recorded, and the calls from room to room."""
    stations = {station for call in calls for station in call}
    crossings = Counter((caller.room, callee.room) for caller, callee in calls if caller.room != callee.room)
    top_crossings = Counter(
        (caller.top_room, callee.top_room) for caller, callee in calls if caller.top_room != callee.top_room
    )
    return {
        "functions": len(stations),
        "modules": len({station.file for station in stations}),
        "rooms": len({station.room for station in stations}),
        "pairs of rooms with a call between them": len(crossings),
        "calls between rooms": crossings.total(),
        "rooms directly below core": len({station.top_room for station in stations}),
        "pairs of rooms directly below core": len(top_crossings),
        "calls between rooms directly below core": top_crossings.total(),
        **{f"  {caller} -> {callee}": count for (caller, callee), count in sorted(crossings.items())},
    }


def trace_row(checkout: Path) -> dict[str, float]:
    """Returns the figures of a row's way in the code of a checkout."""
    from tests.checkouts import run_in
    from tests.tiny import save_tiny_model, write_chats

    with TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny_model(folder / "model")
        write_chats(folder / "chats.jsonl", num_rows=3)
        process = run_in(checkout, ["-P", str(Path(__file__).resolve()), name], folder)
        if process.returncode:
            raise RuntimeError(f"{checkout}: the run that is watched failed: {process.stderr[-2000:]}")
        calls = json.loads(process.stdout.splitlines()[-1])
    if not calls:
        raise RuntimeError(f"{checkout}: no function that row_trace.ENTRIES describes was called")
    return count_calls({(Station(*caller), Station(*callee)) for caller, callee in calls})


def record(folder: Path) -> set[Call]:
    """Trains one step in a folder that holds a model and chats, and returns the calls made with a row in hand."""
    from oumi.core import train as story
    from oumi.core.configs import TrainingConfig

    datasets = [{"dataset_name": "text_sft", "dataset_path": str(folder / "chats.jsonl")}]
    config = TrainingConfig.model_validate(
        {
            "model": {"model_name": str(folder / "model")},
            "data": {"train": {"datasets": datasets}},
            "training": {
                "trainer_type": "OUMI",
                "output_dir": str(folder / "out"),
                "per_device_train_batch_size": 3,
                "max_steps": 1,
                "save_steps": 0,
                "enable_tensorboard": False,
            },
        }
    )
    recorder = Recorder(Path(story.__file__).parent)
    recorder.start()
    try:
        story.train(config)
    finally:
        recorder.stop()
    return recorder.calls


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


if __name__ == "__main__":
    print(json.dumps(sorted(record(Path(sys.argv[1])))))
