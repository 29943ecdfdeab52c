# SPDX-License-Identifier: Apache-2.0
"""Small programs in place of PBS and ssh, which start the real scripts on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

_QSUB = """#!/bin/bash
# Job N is the process group that jobs/N.pid names; its exit code goes to jobs/N.exit.
mkdir -p {jobs}
id=$(( $(ls {jobs} | wc -l) + 1 )).polaris
mkdir {jobs}/$id
printf '%s\\n' "$@" > {jobs}/$id/arguments
env > {jobs}/$id/environment
for script; do :; done
export PBS_JOBID=$id PBS_O_WORKDIR=$PWD PBS_NODEFILE={jobs}/$id/nodes
printf 'x1\\nx2\\n' > $PBS_NODEFILE
cp "$script" {jobs}/$id/script
echo $id
[ ! -e {folder}/lost ] || {{ touch {folder}/unreachable; exit; }}
[ ! -e {folder}/full ] || exit 0
(cd /; setsid bash {jobs}/$id/script & echo $! > {jobs}/$id/pid; wait $!; echo $? > {jobs}/$id/exit) > /dev/null 2>&1 &
"""
_QSTAT = """#!{python}
import json, sys
from pathlib import Path

jobs = {{}}
for name in sys.argv[5:]:
    end = Path({jobs!r}, name, "exit")
    if Path({jobs!r}, name, "forgotten").exists():
        continue
    jobs[name] = {{"Job_Name": "x", "job_state": "R" if end.with_name("pid").exists() else "Q"}}
    if end.exists():
        jobs[name] |= {{"job_state": "F"}} | ({{"Exit_status": int(text)}} if (text := end.read_text()) else {{}})
assert sys.argv[1:5] == ["-x", "-f", "-F", "json"]
print(json.dumps({{"pbs_version": "fake", **({{"Jobs": jobs}} if jobs else {{}})}}))
sys.exit(0 if len(jobs) == len(sys.argv) - 5 else 153)
"""
_QDEL = """#!/bin/bash
[ -e {jobs}/$1/pid ] || {{ touch {jobs}/$1/exit; exit; }}  # deleted before it ran: it has no exit code
kill -TERM -- "-$(cat {jobs}/$1/pid)"
"""
_MPIEXEC = """#!/bin/bash
# mpiexec -n 2 --ppn 1 command
for rank in $(seq 0 $(( $2 - 1 ))); do PMI_RANK=$rank "${{@:5}}" & done
wait
"""
_SSH = """#!/bin/bash
[ "$1" != -G ] || exit 0
user=
while :; do
  case $1 in
    --) shift; break ;;
    -l) user=$2@; shift 2 ;;
    -*) shift ;;
    *) break ;;
  esac
done
echo "$user$1" >> {folder}/hosts
[ ! -e {folder}/unreachable ] || {{ echo "ssh: connect to host $1 port 22: No route to host" >&2; exit 255; }}
host=$1
shift
cd {folder}/home
env -i HOME="$PWD" USER=me PATH="$PATH" bash -c "$*"
code=$?
[ ! -e {folder}/unreachable ] || {{ echo "Connection to $host closed" >&2; exit 255; }}
exit $code
"""


def write_programs(folder: Path) -> Path:
    """Writes `qsub`, `qstat`, `qdel`, `mpiexec` and `ssh` into a folder below `folder`, and returns that."""
    (folder / "home").mkdir()
    # A login shell sets PATH anew, and some print a greeting.
    (folder / "home" / ".bash_profile").write_text(f"echo Welcome to Polaris\nPATH={folder / 'bin'}:$PATH\n")
    (folder / "bin").mkdir()
    programs = {"qsub": _QSUB, "qstat": _QSTAT, "qdel": _QDEL, "mpiexec": _MPIEXEC, "ssh": _SSH}
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(text.format(jobs=str(folder / "jobs"), folder=folder, python=sys.executable))
        path.chmod(0o755)
    return folder / "bin"
