# SPDX-License-Identifier: Apache-2.0
"""A real Slurm with two nodes, all of it on this machine and in one folder, and an sshd that leads to it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.ranks import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sshd", "ssh", "ssh-keygen", "rsync", "pgrep")
START_S = 120
STOP_S = 30
_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
# A job that was put back waits as long as a credential counts, 2 minutes by default.
AuthInfo=socket={folder}/munge.sock,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MinJobAge=2
KillWait=20
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
# Names that are addresses, so that the launchers of both nodes meet.
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=5 State=UP OverSubscribe=FORCE:4
"""
_SSHD_CONF = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
SetEnv SLURM_CONF={folder}/slurm.conf
ForceCommand export HOME={folder}/home; cd; eval "$SSH_ORIGINAL_COMMAND"
"""
_SSH = """#!/bin/sh
# As if no connection were shared by the user's own config; the socket does not go to the home directory.
[ "$1" != -G ] || exec {ssh} -F none "$@"
exec {ssh} -o Port={port} -o IdentityFile={folder}/key -o UserKnownHostsFile={folder}/known_hosts \\
  -o StrictHostKeyChecking=accept-new -o ControlPath={folder}/%C -F none "$@"
"""


def absent_programs() -> list[str]:
    """Returns what is missing here to start one."""
    return [name for name in _PROGRAMS if shutil.which(name) is None] + (["root"] if os.getuid() else [])


class SlurmCluster:
    """Starts the daemons and stops them; jobs find their home in `home`, over ssh as well."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        self.home, self.bin = folder / "home", folder / "bin"
        self.variables = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "HOME": str(self.home),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }

    def __enter__(self) -> SlurmCluster:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        for name in ("home", "bin", "state"):
            (self.folder / name).mkdir()
        ports = [free_port() for _ in range(4)]
        (self.folder / "slurm.conf").write_text(
            _SLURM_CONF.format(folder=self.folder, host=socket.gethostname(), ports=ports)
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {name: f"--{name}={self.folder}/munged.{name}" for name in ("pid-file", "log-file", "seed-file")}
        self._start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            *files.values(),
        )
        self._start("slurmctld", "-D")
        for node in ("127.0.0.1", "127.0.0.2"):
            self._start("slurmd", "-D", "-N", node)
        self._start_sshd(ports[3])
        deadline_s = time.monotonic() + START_S
        while self.run("sinfo -h -o '%D %t'").stdout != "2 idle\n":
            assert time.monotonic() < deadline_s, self._logs()
            time.sleep(0.1)

    def _start_sshd(self, port: int) -> None:
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants this folder and no other
        (self.folder / "sshd_config").write_text(_SSHD_CONF.format(folder=self.folder, port=port))
        ssh = self.bin / "ssh"
        ssh.write_text(_SSH.format(ssh=shutil.which("ssh"), folder=self.folder, port=port))
        ssh.chmod(0o755)
        sshd = shutil.which("sshd")
        assert sshd is not None
        self._start(sshd, "-D", "-e", "-f", str(self.folder / "sshd_config"))

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{Path(command[0]).name}{len(self._processes)}.out").open("wb")
        environment = {**os.environ, **self.variables}
        self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Runs a line of bash that finds this Slurm."""
        environment = {**os.environ, **self.variables}
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)

    def _logs(self) -> str:
        return "\n".join(f"{path}: {path.read_text(errors='replace')}" for path in self.folder.glob("*.[lo][ou][gt]"))

    def __exit__(self, *_: object) -> None:
        self.run("ssh -O exit root@127.0.0.1; scancel --signal=KILL --full -u root; scancel -u root")
        deadline_s = time.monotonic() + STOP_S  # else the supervisors of jobs outlive the daemons
        while self.run("squeue -h").stdout and time.monotonic() < deadline_s:
            time.sleep(0.1)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
