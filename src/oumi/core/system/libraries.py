# SPDX-License-Identifier: Apache-2.0
"""Settings of third-party libraries: less logging, and no usage reports."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from huggingface_hub import constants as hub_constants
from transformers.utils import logging as transformers_logging

_NO_REPORTS = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
}
"""Variables by which libraries and the processes that they start report no usage."""


def quiet_libraries(log_level: str, device: str) -> None:
    """Sets the log level of third-party libraries, and disables their progress bars and usage reports.

    Args:
        log_level: Log level of transformers.
        device: Device of the run.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each new trainer
    os.environ.update(_NO_REPORTS)
    transformers_logging.set_verbosity(getattr(logging, log_level.upper()))
    transformers_logging.disable_progress_bar()
    if device == "cpu":
        logging.getLogger("torchao").setLevel(logging.ERROR)  # warns of missing GPU kernels
    # `datasets` reads the variable on import. It is not imported here, since that is slow.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    # A user cannot fix deprecated calls from one library to another.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\.")
