# SPDX-License-Identifier: Apache-2.0
"""Plans how a model is divided over the ranks of a run. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from oumi.core.configs import TrainingConfig
from oumi.core.configs.deepspeed import ZeRORuntimeStage
from oumi.core.configs.fsdp import AutoWrapPolicy, BackwardPrefetch, FSDPParams, ShardingStrategy, StateDictType

BUCKET_BYTES = 32 << 20
"""Gradients that ranks with whole models sum in one call: large enough for bandwidth, small beside the model."""
HYBRID = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy.HYBRID_SHARD_ZERO2)
KEEPS_GATHERED = (ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.HYBRID_SHARD_ZERO2)
_ELEMENTWISE = ("adam", "adamw", "adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that update each number on its own, so that a slice of a weight is updated as within the whole."""
_ZERO: dict[ZeRORuntimeStage, ShardingStrategy] = {
    ZeRORuntimeStage.ZERO_0: ShardingStrategy.NO_SHARD,
    ZeRORuntimeStage.ZERO_1: ShardingStrategy.SHARD_GRAD_OP,
    ZeRORuntimeStage.ZERO_2: ShardingStrategy.SHARD_GRAD_OP,
    ZeRORuntimeStage.ZERO_3: ShardingStrategy.FULL_SHARD,
}
"""The strategy of FSDP that divides what a stage of ZeRO divides. It divides gradients in stage 1, too."""


@dataclass(frozen=True)
class ShardingPlan:
    """How the trainer OUMI divides weights, gradients and optimizer state over the ranks, by FSDP2 of torch."""

    num_shards: int
    """Ranks that hold one copy of the model together."""
    num_replicas: int
    """Copies of the model, each of them on `num_shards` ranks."""
    frees_after_forward: bool
    """Gather the weights of a block for the forward pass and again for the backward pass, not once for both."""
    block_classes: tuple[str, ...]
    """Names of the classes of the blocks that are gathered one at a time; empty for those that the model names."""
    min_block_weights: int | None
    """Choose the blocks by their number of weights instead."""
    offload: bool
    """Keep shards, their gradients and the optimizer state in the memory of the host."""
    compute_dtype: str | None
    """Dtype in which weights are gathered and multiplied, None for their own."""
    gathers_ahead_in_forward: bool
    """Gather the next block during the forward pass of the one before."""
    gathers_ahead_in_backward: bool
    """Gather the next block during the backward pass of the one before."""
    saves_whole_model: bool
    """Checkpoints contain the model or adapter as Hugging Face files, and not only the slices of each rank."""


def plan_sharding(
    config: TrainingConfig, world_size: int, ranks_per_node: int, dtype: str, has_narrow: bool, is_full: bool
) -> ShardingPlan | None:
    """Returns how the model is divided over the ranks, None if each rank has all of it.

    Args:
        config: The run.
        world_size: Number of ranks.
        ranks_per_node: Number of ranks of a machine, which hold one copy together with the hybrid strategies.
        dtype: Dtype of the weights.
        has_narrow: The device computes in bfloat16.
        is_full: All weights are trained, not an adapter.
    """
    fsdp = equivalent_fsdp(config)
    strategy = fsdp.sharding_strategy
    is_native = config.training.trainer_type.spec.is_native
    if not is_native or not fsdp.enable_fsdp or world_size == 1 or strategy == ShardingStrategy.NO_SHARD:
        return None
    num_shards = ranks_per_node if strategy in HYBRID else world_size
    if num_shards == 1:
        return None
    by_size = fsdp.auto_wrap_policy == AutoWrapPolicy.SIZE_BASED_WRAP
    return ShardingPlan(
        num_shards=num_shards,
        num_replicas=world_size // num_shards,
        frees_after_forward=strategy not in KEEPS_GATHERED,
        block_classes=() if by_size else class_names(fsdp),
        min_block_weights=fsdp.min_num_params if by_size else None,
        offload=fsdp.cpu_offload,
        compute_dtype="bfloat16" if fsdp.mixed_precision == "bf16" and has_narrow and dtype != "bfloat16" else None,
        gathers_ahead_in_forward=fsdp.forward_prefetch,
        gathers_ahead_in_backward=fsdp.backward_prefetch == BackwardPrefetch.BACKWARD_PRE,
        # Only the adapter is saved, which is small, and its files say what it is.
        saves_whole_model=fsdp.state_dict_type == StateDictType.FULL_STATE_DICT or not is_full,
    )


def equivalent_fsdp(config: TrainingConfig) -> FSDPParams:
    """Returns the section `fsdp`, or the one that divides the model as the section `deepspeed` says if that is on."""
    deepspeed = config.deepspeed
    if not deepspeed.enable_deepspeed:
        return config.fsdp
    return FSDPParams(
        enable_fsdp=True,
        sharding_strategy=_ZERO[deepspeed.zero_stage],
        cpu_offload=deepspeed.offload_optimizer is not None or deepspeed.offload_param is not None,
        auto_wrap_policy=AutoWrapPolicy.TRANSFORMER_BASED_WRAP,
        state_dict_type=StateDictType.FULL_STATE_DICT,
    )


def sharding_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields (key, message) of what the trainer OUMI cannot divide over ranks."""
    training = config.training
    fsdp, deepspeed = equivalent_fsdp(config), config.deepspeed
    if not training.trainer_type.spec.is_native or not fsdp.enable_fsdp:
        return
    if deepspeed.enable_deepspeed and deepspeed.deepspeed_config_path is not None:
        yield "deepspeed.deepspeed_config_path", "trainer OUMI reads no file of DeepSpeed; set zero_stage instead"
    if fsdp.sharding_strategy == ShardingStrategy.NO_SHARD:
        return
    if training.optimizer not in _ELEMENTWISE:
        yield (
            "training.optimizer",
            f"{training.optimizer} needs whole weights, and fsdp divides them over the ranks; "
            f"available: {', '.join(_ELEMENTWISE)}",
        )
    if fsdp.mixed_precision == "fp16" or training.mixed_precision_dtype.name == "FP16":
        key = "fsdp.mixed_precision" if fsdp.mixed_precision == "fp16" else "training.mixed_precision_dtype"
        yield key, "fp16 needs a loss scale, which is not supported with fsdp; use bf16"
    if training.fp8_recipe is not None:
        yield "training.fp8_recipe", "not supported with fsdp; leave one of them out"
    if training.use_peft and config.peft.lora_target_parameters:
        yield "peft.lora_target_parameters", "not supported with fsdp.enable_fsdp: an adapter on stacked weights"


def rows_of_rank(num_rows: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """Returns the first row of a rank's slice and the number of its rows, as torch.chunk divides a weight.

    The last ranks may have fewer rows than the others, or none.
    """
    size = -(-num_rows // num_ranks)
    start = min(rank * size, num_rows)
    return start, min(size, num_rows - start)


def class_names(fsdp: FSDPParams) -> tuple[str, ...]:
    """Returns the names of classes in `transformer_layer_cls`, without their modules."""
    names = (fsdp.transformer_layer_cls or "").split(",")
    return tuple(name.strip().rpartition(".")[2] for name in names if name.strip())


def strategy_notes(fsdp: FSDPParams, num_replicas: int | None, world_size: int) -> Iterator[str]:
    """Yields where a strategy has no effect; `num_replicas` is None if the model is not divided."""
    is_hybrid = fsdp.sharding_strategy in HYBRID
    if num_replicas is None and world_size == 1:
        yield "not read: fsdp.enable_fsdp: the run is a single process, so nothing is sharded"
    elif num_replicas is None and is_hybrid:
        yield "fsdp: each machine has one rank, so nothing is sharded within it"
    elif num_replicas == 1 and is_hybrid:
        yield f"fsdp.sharding_strategy: {fsdp.sharding_strategy.name} on one machine is the same as without HYBRID"


def sharding_notes(config: TrainingConfig, plan: ShardingPlan | None, world_size: int, device: str) -> Iterator[str]:
    """Yields where sharding differs from what the keys of `fsdp` suggest, for the trainer OUMI."""
    fsdp = equivalent_fsdp(config)
    if not fsdp.enable_fsdp or not config.training.trainer_type.spec.is_native:
        return
    if config.deepspeed.enable_deepspeed:
        stage = config.deepspeed.zero_stage
        yield f"deepspeed: trainer OUMI divides the model by FSDP2: {stage.name} is {_ZERO[stage].name}"
    if config.deepspeed.enable_deepspeed and world_size == 1:
        yield "not read: deepspeed.enable_deepspeed: the run is a single process, so nothing is sharded"
    else:
        yield from strategy_notes(fsdp, None if plan is None else plan.num_replicas, world_size)
    if plan is None:
        return
    if fsdp.auto_wrap_policy == AutoWrapPolicy.NO_WRAP:
        yield (
            "fsdp.auto_wrap_policy: NO_WRAP would gather the whole model at once; its blocks are gathered one at a "
            "time, as with TRANSFORMER_BASED_WRAP"
        )
    if plan.min_block_weights is None and fsdp.min_num_params != FSDPParams().min_num_params:
        yield "not read: fsdp.min_num_params: only SIZE_BASED_WRAP of fsdp.auto_wrap_policy reads it"
    if plan.min_block_weights is not None and fsdp.transformer_layer_cls:
        yield "not read: fsdp.transformer_layer_cls: SIZE_BASED_WRAP of fsdp.auto_wrap_policy chooses by size"
    if fsdp.state_dict_type == StateDictType.LOCAL_STATE_DICT and not plan.saves_whole_model:
        yield "fsdp.state_dict_type: LOCAL_STATE_DICT has no equivalent in FSDP2; it is taken for SHARDED_STATE_DICT"
    if fsdp.use_orig_params is not None:
        yield "not read: fsdp.use_orig_params: FSDP2 always keeps the parameters"
    if not fsdp.sync_module_states:
        yield "not read: fsdp.sync_module_states: every rank reads its slices of the same files"
    if fsdp.backward_prefetch == BackwardPrefetch.BACKWARD_POST:
        yield "fsdp.backward_prefetch: FSDP2 gathers ahead (BACKWARD_PRE) or not; BACKWARD_POST does not gather ahead"
    if fsdp.mixed_precision == "bf16" and plan.compute_dtype is None:
        yield "not read: fsdp.mixed_precision: the weights are bfloat16 already, or the CPU has no bfloat16"
    if config.training.mixed_precision_dtype.name != "NONE" and plan.compute_dtype is None and device != "cpu":
        yield (
            "training.mixed_precision_dtype: each rank keeps a 16-bit copy of all weights during a step; with "
            "fsdp.mixed_precision: bf16 only of those that are gathered"
        )
    if fsdp.state_dict_type != StateDictType.FULL_STATE_DICT and plan.saves_whole_model:
        yield f"not read: fsdp.state_dict_type: {fsdp.state_dict_type.name}: an adapter is saved as a whole"
    if plan.offload and device == "cpu":
        yield "not read: fsdp.cpu_offload: the run is on a CPU"
