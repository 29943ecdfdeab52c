# SPDX-License-Identifier: Apache-2.0
"""Runs Python in processes that need not import torch: each is forked from a server that holds it, and never used it.

A process takes 0.1 seconds to start rather than five, and is a process in everything else: signals, exit codes,
files, threads. What only a fresh interpreter shows (how long imports take, memory, `oumi` itself) needs `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

TIMEOUT_S = 240
_PRELOADED = (
    "oumi.cli.main",
    "oumi.core.train",
    "oumi.core.distributed.launch",
    "oumi.core.trainers.native",
    "oumi.core.trainers.trl",
    "oumi.core.monitoring.trackers",
    "oumi.core.results.chat_model",
    "oumi.core.methods.next_token",
    "oumi.datasets.sft.text",
    "datasets",
    "tensorboard",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
)
_READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "OMP_", "MKL_", "KMP_", "GOMP_")
_ENVIRONMENT = dict(os.environ)
"""As it was before any test changed it."""


class ForkServer:
    """A process that starts others, all with its variables: give those here that libraries read at import."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=Path(__file__).parents[1],
            env={**_ENVIRONMENT, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, *arguments: str, folder: Path | None = None, terminal: str = "", **variables: str) -> ForkedProcess:
        """Starts Python with arguments (`-m oumi ...`, `-c ...` or a script), in a folder, with more variables."""
        late = [name for name in variables if name.startswith(_READ_AT_IMPORT)]
        assert not late, f"libraries of this server have read {late} already: start one with them"
        environment = {**os.environ, **self._variables, **variables}
        return ForkedProcess(self, arguments, str(folder or Path.cwd()), environment, terminal)

    def run(self, *arguments: str, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with arguments to its end, as `subprocess.run` does."""
        process = self.start(*arguments, folder=folder, **variables)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode or 0, stdout, stderr)

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def ask(self, *request: Any, timeout: float | None = None) -> int | None:
        """Returns the answer to a request, None if it does not come in time; `ask()` waits for it once more."""
        if request:
            self._server.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            return None
        return int(self._server.stdout.readline())  # type: ignore[union-attr]


class ForkedProcess:
    """A process that a server started, with the methods of `subprocess.Popen` that tests need."""

    def __init__(
        self, server: ForkServer, arguments: tuple[str, ...], folder: str, environment: dict[str, str], terminal: str
    ) -> None:
        self._server = server
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        paths = [terminal] * 3 if terminal else [os.devnull, *map(str, self._outputs)]
        self.pid = server.ask("start", arguments, folder, environment, paths) or 0
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """Waits for the process and returns what it wrote to stdout and stderr; raises TimeoutExpired."""
        if self.returncode is None:
            self.returncode = self._server.ask("wait", self.pid, timeout=timeout)
        if self.returncode is None:
            self.kill()
            self.returncode = self._server.ask()
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in self._outputs)
        return stdout, stderr


@cache
def _shared() -> ForkServer:
    server = ForkServer()
    atexit.register(server.__exit__)
    return server


def start_python(*arguments: str, **options: Any) -> ForkedProcess:
    """Starts Python from the server that all tests share, see `ForkServer.start`."""
    return _shared().start(*arguments, **options)


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python from the server that all tests share, see `ForkServer.run`."""
    return _shared().run(*arguments, **options)


def _serve() -> list[str]:
    """Answers requests until the pipe ends; in each process that it starts, returns the arguments of Python instead.

    The answer to "start" is the id of a process, that to "wait" its exit code.
    """
    for line in sys.stdin:
        kind, *details = json.loads(line)
        if kind == "start":
            arguments, folder, environment, paths = details
            # Before the answer, so that whoever waits for the end of a terminal finds it open.
            files = [os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOCTTY) for path in paths]
            answer = os.fork()
            if answer == 0:
                _become(files, folder, environment)
                return arguments
            for file in files:
                os.close(file)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(details[0], 0)[1])
        print(answer, flush=True)
    os._exit(0)


def _become(files: list[int], folder: str, environment: dict[str, str]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rww"[number], 1) for number in range(3))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def _run_to_end(first: str, *others: str) -> None:
    """Does what Python does with such arguments, and ends without taking torch apart, which takes a second."""
    code = 0
    try:
        _run(first, *others)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    finally:
        if sys.exception() is not None:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(first: str, *others: str) -> None:
    if first == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = list(others)
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    gc.disable()
    for module in _PRELOADED:
        import_module(module)
    gc.enable()
    gc.freeze()  # so that a collection in a process does not copy every page that the server holds
    _run_to_end(*_serve())
