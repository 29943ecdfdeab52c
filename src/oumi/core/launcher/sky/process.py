# SPDX-License-Identifier: Apache-2.0
"""The process that calls SkyPilot, in an environment of its own, so that its packages never meet ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from oumi.core.errors import ConfigError
from oumi.core.launcher.cloud import ClusterNotFoundError, ClusterUnreachableError, LauncherError, MissingToolError
from oumi.core.log import logger
from oumi.core.system.filesystem import expanded

INSTALL = "uv tool install --with pip 'skypilot[{cloud}]>=0.14,<0.15'"
"""The command that installs SkyPilot; its extra brings what the cloud needs."""
EXTRAS = {"k8s": "kubernetes", "sky-slurm": "slurm"}
VARIABLE = "OUMI_SKY"
"""Environment variable with the path of the command `sky`."""
_DRIVER = Path(__file__).with_name("driver.py")
_CANCEL_SECONDS, _PATIENCE_SECONDS = 30, 8
_COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERRORS: Mapping[str, type[LauncherError]] = {
    "ClusterDoesNotExist": ClusterNotFoundError,
    "ClusterNotUpError": ClusterUnreachableError,
    "NoCloudAccessError": MissingToolError,
}
"""Classes of SkyPilot's errors that mean one of ours; any other is a LauncherError that names its class."""


class SkyProcess:
    """SkyPilot's Python, started on first use. It ends with this process, however that ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._records: list[dict[str, Any]] = []
        self._records_time = -1.0

    def call(self, name: str, shows_progress: bool = False, **arguments: Any) -> Any:
        """Returns the result of a function of the driver.

        Args:
            name: The function.
            shows_progress: What SkyPilot prints goes to stderr.
            arguments: Of the function, as JSON.

        Raises:
            LauncherError: SkyPilot refused, by the class of its error.
            MissingToolError: SkyPilot is not installed.
        """
        with self._lock, _patience():
            return next(self._answers(name, shows_progress, arguments))

    def stream(self, name: str, **arguments: Any) -> Iterator[str]:
        """Yields the texts that a function of the driver sends, as they come; raises as `call`."""
        process = SkyProcess()  # of its own, which others need not wait for, and which ends with the stream
        with closing(process), closing(process._answers(name, False, arguments)) as answers:
            for answer in answers:
                if isinstance(answer, str):
                    yield _COLORS.sub("", answer)

    def clusters(self) -> list[dict[str, Any]]:
        """Returns name, state, cloud and price of all clusters; threads that ask together share an answer."""
        called = time.monotonic()
        if not _may_have_clusters():  # asking starts SkyPilot's server, which takes seconds and a gigabyte
            return []
        with self._lock, _patience():
            if self._records_time < called:
                self._records = next(self._answers("clusters", False, {}))
                self._records_time = time.monotonic()
            return self._records

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # of a request that was never read
                        pipe.close()
            self._process = None

    def _answers(self, name: str, shows_progress: bool, arguments: Mapping[str, Any]) -> Generator[Any]:
        """Yields texts as str, then the result."""
        process = self._process = self._process or _start()
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        is_answered = False
        try:
            request = {"call": name, "arguments": arguments, "shows_progress": shows_progress}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise _error(**answer["error"])
                is_answered = "result" in answer
                yield answer["result"] if is_answered else answer["text"]
                if is_answered:
                    return
            raise _end_error(process)
        except BrokenPipeError:
            raise _end_error(process) from None
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it takes back what SkyPilot has begun
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CANCEL_SECONDS)
            raise
        finally:
            if not is_answered:  # the rest of the answer must not be taken for that of the next call
                self.close()


def find_python() -> str | None:
    """Returns the Python of SkyPilot, None if SkyPilot is not installed.

    SkyPilot is the command `sky` of OUMI_SKY, beside our own Python, or on the PATH.

    Raises:
        ConfigError: OUMI_SKY is no such command.
    """
    named = os.environ.get(VARIABLE)
    if named and not expanded(named).is_file():
        raise ConfigError(f"{VARIABLE}: no file {named}; expected the path of the command `sky`")
    beside = Path(sys.executable).parent / "sky"
    command = named or (str(beside) if beside.is_file() else shutil.which("sky"))
    if command is None:
        return None
    python = _python_of(expanded(command))
    if python is None and named:
        raise ConfigError(f"{VARIABLE}: {named} is not the command `sky` of SkyPilot, a script that names its Python")
    return python


def how_to_install(cloud: str) -> str:
    """Returns the message that SkyPilot is missing, with the command that installs it for a cloud."""
    command = INSTALL.format(cloud=EXTRAS.get(cloud, cloud))
    return f"SkyPilot, which starts jobs on {cloud}. Install it with: {command}"


def _python_of(script: Path) -> str | None:
    """Returns the Python in the first lines of an installed script, None if it has none."""
    with script.open("rb") as file:
        head = os.fsdecode(file.read(4096))
    if match := re.match(r"#!\s*\S*/env\s+(\S+)\s*\n", head):
        return shutil.which(match[1])
    # Installers write a shell's line where the path is too long for the kernel or has a space.
    match = re.match(r"#!/bin/sh\n'''exec' \"?([^\"\n]+?)\"? \"\$0\"", head) or re.match(r"#!\s*(\S+)\s*\n", head)
    return match[1] if match and Path(match[1]).is_file() else None


def _start() -> subprocess.Popen[str]:
    python = find_python()
    if python is None:
        command = INSTALL.format(cloud="gcp")
        raise MissingToolError(f"SkyPilot is not installed, and has clusters here (~/.sky); install it with: {command}")
    # Ours would be found before SkyPilot's own packages.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "DO_NOT_TRACK": "1"}
    return subprocess.Popen(
        [python, str(_DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
        env=environment, start_new_session=True,  # Ctrl-C reaches it once: from here
    )  # fmt: skip


@contextmanager
def _patience() -> Iterator[None]:
    """Says what is waited for, if it takes long."""
    timer = threading.Timer(_PATIENCE_SECONDS, logger.info, ("waiting for SkyPilot, whose server may have to start",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_error(process: subprocess.Popen[str]) -> LauncherError:
    """Returns the error of a process that ended without an answer."""
    code = process.wait()
    return LauncherError(f"SkyPilot ended with exit code {code}; see what `{find_python()} -c 'import sky'` says")


def _may_have_clusters() -> bool:
    """Returns True unless this machine has no clusters of SkyPilot and no server elsewhere that may have some."""
    home = expanded(os.environ.get("SKY_RUNTIME_DIR") or "~") / ".sky"
    elsewhere = ("SKYPILOT_API_SERVER_ENDPOINT", "SKYPILOT_DB_CONNECTION_URI", "SKYPILOT_GLOBAL_CONFIG")
    config = expanded("~/.sky/config.yaml")
    names_server = config.is_file() and "endpoint" in config.read_text(encoding="utf-8", errors="replace")
    return (home / "state.db").exists() or names_server or any(os.environ.get(name) for name in elsewhere)


def _error(kind: str, message: str) -> LauncherError:
    message = _COLORS.sub("", message).strip() or kind
    return _ERRORS[kind](message) if kind in _ERRORS else LauncherError(f"SkyPilot: {kind}: {message}")
