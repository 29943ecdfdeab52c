# SPDX-License-Identifier: Apache-2.0
"""Runs the command line with a fault planted on one rank; started by the tests of ranks.

FAULT is `rank:file:function:call:action`: at that call of the function, the rank raises an error, is killed or is
stopped, pauses, or finds the disk full. It happens on the first attempt only.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from oumi.cli.main import run

rank, file, function, call, action = os.environ.get("FAULT", "-1::::").split(":")
calls = 0


def strike(frame: FrameType, event: str, _: Any) -> None:
    global calls
    code = frame.f_code
    if event != "call" or code.co_name != function or not code.co_filename.endswith(file):
        return
    calls += 1
    if calls != int(call):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif action == "pause":
        time.sleep(3)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file of the checkpoint")
    else:
        raise RuntimeError("planted")


if os.environ.get("RANK") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    threading.setprofile(strike)
    sys.setprofile(strike)

if __name__ == "__main__":
    run()
