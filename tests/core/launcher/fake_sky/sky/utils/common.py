# SPDX-License-Identifier: Apache-2.0
from enum import Enum


class StatusRefreshMode(Enum):
    NONE = "NONE"
    AUTO = "AUTO"
