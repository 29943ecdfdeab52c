# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.configs.data import (
    DataParams,
    DatasetParams,
    DatasetSplit,
    DatasetSplitParams,
    MixtureStrategy,
    TrainTarget,
)
