# SPDX-License-Identifier: Apache-2.0
"""How the libraries below log, and that they report nothing."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from huggingface_hub import constants as hub_constants
from transformers.utils import logging as transformers_logging


def quiet_libraries(log_level: str, device: str) -> None:
    """Sets the log level of the libraries below, hides their progress bars, and turns their usage reports off.

    Args:
        log_level: Of transformers.
        device: Of the run.
    """
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer that is made
    transformers_logging.set_verbosity(getattr(logging, log_level.upper()))
    transformers_logging.disable_progress_bar()
    if device == "cpu":
        logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of kernels that are for a GPU
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read as it is imported, which takes long
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    # What one of them should call otherwise in another is not for the user to mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\.")
