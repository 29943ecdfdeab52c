# SPDX-License-Identifier: Apache-2.0
"""This repository's `oumi train` as one of the ranks of a run, measured as the other drivers are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from clock import Clock, load_job, peak_bytes, rank

from oumi.cli.main import run
from oumi.core.system import host


def main() -> None:
    """Trains with the config of the job."""
    # As the command line does, which would be too late: the clock imports torch.
    host.tighten_heap()
    host.let_waiting_threads_sleep()
    job = load_job()
    clock = Clock(job)
    clock.watch_optimizers()
    import torch

    sys.argv = ["oumi", "train", "-c", job["config"]]
    try:
        run()
    except SystemExit as end:  # how its command line ends, also after success
        if end.code:
            raise
    if rank() == 0:  # which alone writes them
        lines = (Path(job["out"]) / "metrics.jsonl").read_text().splitlines()
        clock.losses = [json.loads(line)["loss"] for line in lines]
    clock.write_result(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes())


if __name__ == "__main__":
    main()
