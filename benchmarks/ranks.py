# SPDX-License-Identifier: Apache-2.0
"""A rank of a run whose memory is measured by phases. Started by `benchmarks.memory`, once for each rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from oumi.core.system import host

_RESET_PEAK = "5"
"""See proc_pid_clear_refs(5)."""


def main(config_path: str) -> None:
    """Trains as `oumi train` does; prints the predicted peak of this rank, and its peak in bytes by phase."""
    host.tighten_heap()  # before torch is imported
    host.let_waiting_threads_sleep()
    from oumi.core.data.training_data import load_training_data
    from oumi.core.distributed.world import World
    from oumi.core.inspect import gather_facts
    from oumi.core.plan.fitting import with_rows
    from oumi.core.plan.plan import make_plan
    from oumi.core.plan.refusals import load_checked
    from oumi.core.trainers.native import NativeTrainer
    from oumi.core.trainers.resume import find_resume_point

    host.keep_freed_memory()
    host.limit_kernel_caches()
    config = load_checked(Path(config_path), [])
    with World.start() as world:
        facts = gather_facts(config, local_size=world.local_size)
        plan = make_plan(config, facts, world.size, world.local_size)
        plan.output_dir.mkdir(parents=True, exist_ok=True)
        resume_point = world.on_main(lambda: find_resume_point(plan))
        with world.run_first():
            data = load_training_data(plan, resume_point.began, writes=world.is_main)
        plan = with_rows(plan, data.num_rows, data.largest)
        trainer = NativeTrainer.build(plan, world, data, resume_point)
        peaks = {"load": _peak()}
        trainer.train()
        peaks["train"] = _peak()
        trainer.save(plan.output_dir)
        peaks["save"] = _peak()
        predicted = 0 if plan.memory is None else plan.memory.total
        print(json.dumps({"predicted": predicted, **peaks}))


def _peak() -> int:
    """Returns the peak memory in bytes since the last call, or since the process began."""
    peak = host.peak_memory_bytes()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    return peak


if __name__ == "__main__":
    main(sys.argv[1])
