# SPDX-License-Identifier: Apache-2.0
"""Sharding over devices."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt

from oumi.core.configs.base import NamedEnum, Params


class ShardingStrategy(NamedEnum):
    """What is sharded."""

    FULL_SHARD = "FULL_SHARD"
    SHARD_GRAD_OP = "SHARD_GRAD_OP"
    HYBRID_SHARD = "HYBRID_SHARD"
    NO_SHARD = "NO_SHARD"
    HYBRID_SHARD_ZERO2 = "HYBRID_SHARD_ZERO2"

    def to_torch(self) -> Any:
        """Returns torch's member of the same name."""
        from torch.distributed.fsdp import ShardingStrategy as TorchStrategy

        # torch marks this strategy as private.
        return {
            "HYBRID_SHARD_ZERO2": TorchStrategy._HYBRID_SHARD_ZERO2,
        }.get(self.name) or getattr(TorchStrategy, self.name)


class StateDictType(NamedEnum):
    """How a sharded state is saved."""

    FULL_STATE_DICT = "FULL_STATE_DICT"
    SHARDED_STATE_DICT = "SHARDED_STATE_DICT"
    LOCAL_STATE_DICT = "LOCAL_STATE_DICT"


class BackwardPrefetch(NamedEnum):
    """When the weights of the next block are gathered in backward."""

    BACKWARD_PRE = "BACKWARD_PRE"
    BACKWARD_POST = "BACKWARD_POST"
    NO_PREFETCH = "NO_PREFETCH"


class AutoWrapPolicy(NamedEnum):
    """Which modules are sharded as one."""

    SIZE_BASED_WRAP = "SIZE_BASED_WRAP"
    TRANSFORMER_BASED_WRAP = "TRANSFORMER_BASED_WRAP"
    NO_WRAP = "NO_WRAP"


class FSDPParams(Params):
    """Fully sharded data parallelism."""

    enable_fsdp: bool = False
    """Shard the model over all processes."""
    sharding_strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD
    """What is sharded."""
    cpu_offload: bool = False
    """Keep shards in CPU memory."""
    mixed_precision: Literal["bf16", "fp16"] | None = None
    """Dtype in which sharded blocks of float32 weights compute; fp16 is not supported."""
    backward_prefetch: BackwardPrefetch = BackwardPrefetch.BACKWARD_PRE
    """When weights are gathered in backward; only trainer OUMI reads it."""
    forward_prefetch: bool = False
    """Gather the next block early in forward; only trainer OUMI reads it."""
    use_orig_params: bool | None = None
    """Of FSDP1: FSDP2 always keeps the parameters."""
    state_dict_type: StateDictType = StateDictType.FULL_STATE_DICT
    """How the state is saved; checkpoints of TRL_SFT and HF also contain the whole model."""
    auto_wrap_policy: AutoWrapPolicy = AutoWrapPolicy.NO_WRAP
    """Which modules are gathered as one: blocks, but for SIZE_BASED_WRAP of trainer OUMI."""
    min_num_params: PositiveInt = 100000
    """Smallest module of the size policy, which only trainer OUMI has."""
    transformer_layer_cls: str | None = None
    """Class names of blocks, with commas; null finds them."""
    sync_module_states: bool = True
    """Of FSDP1: every process reads the same weights."""
