# SPDX-License-Identifier: Apache-2.0
"""Trains on file systems that lack one feature after the other; prints what each run came to as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from oumi.core.configs import TrainingConfig
from oumi.core.errors import OumiError
from oumi.core.train import train


def attempt(trainer: str, features: str) -> list[object]:
    """Returns the exit code of a run, its message, and the names that it left."""
    os.environ["LACKS"] = features
    config = TrainingConfig.from_yaml(sys.argv[1])
    out = Path(config.training.output_dir) / f"{trainer} {features}"
    config.training = config.training.model_copy(update={"output_dir": str(out)})
    config.training.trainer_type = trainer  # type: ignore[assignment]  # converted to its enum
    try:
        train(config)
    except OumiError as error:
        return [error.exit_code, str(error), []]
    return [0, "", sorted(path.name for path in out.iterdir())]


print(json.dumps({name: attempt(*name.split(" ", 1)) for name in sys.argv[2:]}))
