# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.core.configs.fsdp import (
    AutoWrapPolicy,
    BackwardPrefetch,
    FSDPParams,
    ShardingStrategy,
    StateDictType,
)
