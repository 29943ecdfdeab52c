# SPDX-License-Identifier: Apache-2.0
"""Takes the only step of each config that it is given; started on the ranks of a launcher by test_communication.py.

Prints, for each, what the plan predicts that a rank sends, and the sizes of the collective operations of the step.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime

from oumi.core.configs import TrainingConfig
from oumi.core.data.training_data import load_training_data
from oumi.core.distributed.world import World
from oumi.core.engine.loop import fit
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.render import plan_json
from oumi.core.trainers.native import NativeTrainer
from oumi.core.trainers.resume import find_resume_point
from tests.core.plan.collectives import Collectives

for argument in sys.argv[1:]:
    os.environ["MASTER_PORT"], _, path = argument.partition(":")
    config = TrainingConfig.from_yaml(path)
    with World.start() as world:
        plan = make_plan(config, gather_facts(config), world.size, world.local_size)
        plan.output_dir.mkdir(exist_ok=True)
        data = load_training_data(plan, datetime(2026, 1, 1), writes=world.is_main)
        resume_point = world.on_main(lambda plan=plan: find_resume_point(plan))  # type: ignore[misc]
        trainer = NativeTrainer.build(plan.with_num_rows(data.num_rows), world, data, resume_point)
        with Collectives() as collectives:
            fit(trainer.run)
        sizes = {kind: collectives.total(kind) for kind in ("gather", "scatter", "sum")}
        if world.is_main:
            print(json.dumps({"sent": plan_json(plan)["communication"], **sizes}))
