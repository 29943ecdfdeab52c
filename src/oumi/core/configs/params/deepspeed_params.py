# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.configs.deepspeed import (
    DeepSpeedOffloadDevice,
    DeepSpeedParams,
    DeepSpeedPrecision,
    OffloadConfig,
    ZeRORuntimeStage,
)
