# SPDX-License-Identifier: Apache-2.0
"""Where the commands of a scheduler run: on this machine, or behind ssh."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from oumi.core.errors import ConfigError
from oumi.core.launcher.cloud import ClusterUnreachableError, LauncherError, MissingToolError
from oumi.core.launcher.upload import Upload

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(@[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
"""`user@host`, or a name of the ssh config; never a flag of ssh."""
_OPTIONS = {
    "BatchMode": "yes",  # nobody is there to answer a prompt
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "2",
}
_SHARED = {"ControlMaster": "auto", "ControlPersist": "10m", "ControlPath": "~/.ssh/oumi-%C"}
"""One connection for all commands; the path is short, since that of a socket has at most 107 bytes."""
_BEGIN = b"\n--- oumi launch ---\n"
"""Printed before a script's output: the profile of a shell may print something, too."""
_ANSWER_S = 120
_UNREACHABLE = 255
"""Exit code of ssh for its own failures."""


class CommandError(LauncherError):
    """A script failed on its machine; the message is what it wrote to stderr."""


class Machine:
    """A machine that runs bash scripts, which it gets by stdin: nothing of them is on a command line."""

    def __init__(self, host: str = "") -> None:
        """Initializes the machine behind `user@host`; this one without it. Raises ConfigError for what is no host."""
        if host and not _HOST.fullmatch(host):
            raise ConfigError(f"--cluster: '{host}' is not a machine: expected user@host")
        self.host = host

    def missing_tools(self) -> list[str]:
        """Returns what has to be installed here to use the machine."""
        programs = {"ssh": "the OpenSSH client", "rsync": "rsync"} if self.host else {}
        return [
            f"{what}: install it with your system's package manager (`{name}` is not on PATH)"
            for name, what in programs.items()
            if shutil.which(name) is None
        ]

    def run(self, script: str, timeout_s: float = _ANSWER_S) -> bytes:
        """Runs a script of bash to its end and returns what it printed.

        Raises:
            CommandError: It failed.
            ClusterUnreachableError: The machine cannot be reached, or does not answer in time.
        """
        # Within braces bash reads all of the script before it starts the first command, which so cannot read the rest.
        text = f"printf %s {shlex.quote(_BEGIN.decode())}\n{{\n{script}\n}} </dev/null\nexit\n"
        # A login shell, because clusters often put the commands of the scheduler on PATH by a profile.
        command = [*self._ssh(), "--", self.host, "bash -l"] if self.host else ["bash"]
        with tempfile.TemporaryFile() as errors:  # no pipe, which a shared connection would keep open
            try:
                done = subprocess.run(
                    command, input=os.fsencode(text), stdout=subprocess.PIPE, stderr=errors, timeout=timeout_s
                )
            except subprocess.TimeoutExpired as error:
                raise ClusterUnreachableError(f"{self}: no answer within {timeout_s:g} s") from error
            except FileNotFoundError as error:
                raise MissingToolError(f"`{command[0]}` is not on PATH") from error
            errors.seek(0)
            reason = os.fsdecode(errors.read()).strip()
        _, begin, output = done.stdout.partition(_BEGIN)
        if done.returncode and (not begin or (self.host and done.returncode == _UNREACHABLE)):
            raise ClusterUnreachableError(self._no_connection(done.returncode, reason))
        if done.returncode:
            raise CommandError(f"{self}: {reason or f'exit code {done.returncode}'}")
        return output

    def send(self, upload: Upload, folder: str) -> None:
        """Copies files into a folder of the machine, which must exist; raises LauncherError if that fails."""
        # Sizes and times decide what is sent again; paths are not read by the shell over there.
        self._rsync(["--files-from=-", "--from0"], f"{upload.root}/", f"{folder}/", "\0".join(upload.names))

    def send_file(self, source: Path, target: str) -> None:
        """Copies one file to a path of the machine, whose folder must exist; raises LauncherError if that fails."""
        self._rsync(["--copy-links"], str(source), target)

    def _rsync(self, options: list[str], source: str, target: str, names: str = "") -> None:
        command = ["rsync", "--links", "--perms", "--times", "--compress", "--protect-args", *options]
        command += ["-e", shlex.join(self._ssh()), "--", source, f"{self.host}:{target}"]
        try:
            done = subprocess.run(command, input=os.fsencode(names), capture_output=True)
        except FileNotFoundError as error:
            raise MissingToolError("`rsync` is not on PATH: install it with your system's package manager") from error
        if done.returncode:
            reason = os.fsdecode(done.stderr).strip()
            if done.returncode == _UNREACHABLE:
                raise ClusterUnreachableError(self._no_connection(_UNREACHABLE, reason))
            raise LauncherError(f"{self}: rsync failed: {reason}")

    def _ssh(self) -> list[str]:
        options = dict(_OPTIONS)
        if not self._has_own_connection:
            _ssh_folder().mkdir(mode=0o700, exist_ok=True)
            options |= _SHARED
        return ["ssh", *(f"-o{name}={value}" for name, value in options.items())]

    @cached_property
    def _has_own_connection(self) -> bool:
        """Returns True if the user's ssh config shares connections already: one that asks for tokens may be open."""
        try:
            done = subprocess.run(["ssh", "-G", "--", self.host], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise MissingToolError("`ssh` is not on PATH: install the OpenSSH client") from error
        return any(line.startswith("controlpath ") for line in done.stdout.splitlines())

    def _no_connection(self, code: int, reason: str) -> str:
        lines = reason.splitlines() or [f"ssh ended with exit code {code}"]
        message = f"{self}: {lines[-1]}"
        if "Host key verification failed" in reason:
            message += f"\nAccept its key first: {shlex.join(['ssh', self.host])}"
        if "Permission denied" in reason:
            message += "\nIf it asks for a password or a token, open a connection first, which is then used:\n  "
            options: Sequence[str] = [] if self._has_own_connection else [f"-o{k}={v}" for k, v in _SHARED.items()]
            message += shlex.join(["ssh", "-fN", *options, self.host])
        return message

    def __str__(self) -> str:
        return self.host or "this machine"


def _ssh_folder() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"  # what ssh takes `~` for, whatever HOME is
