# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import PositiveInt

from oumi.core.configs.base import Complaint, NamedEnum, Params
from oumi.core.configs.paths import PathText

Size = float | int | str
"""A number, or `auto`."""


class ZeRORuntimeStage(NamedEnum):
    """What ZeRO shards."""

    ZERO_0 = "0"
    ZERO_1 = "1"
    ZERO_2 = "2"
    ZERO_3 = "3"


class DeepSpeedOffloadDevice(NamedEnum):
    """Where to offload to."""

    CPU = "cpu"
    NVME = "nvme"


class DeepSpeedPrecision(NamedEnum):
    """Dtype of DeepSpeed."""

    FP16 = "fp16"
    BF16 = "bf16"


class OffloadConfig(Params):
    """Offloading of optimizer or parameters."""

    device: DeepSpeedOffloadDevice = DeepSpeedOffloadDevice.CPU
    """Where to."""
    pin_memory: bool = True
    """Use pinned memory."""
    buffer_count: PositiveInt = 4
    """Buffers in CPU memory."""
    buffer_count_nvme: PositiveInt = 2
    """Buffers for NVMe."""
    block_size: PositiveInt = 1048576
    """Bytes of an NVMe block."""
    queue_depth: PositiveInt = 8
    """NVMe queue depth."""
    single_submit: bool = False
    """Submit NVMe requests one by one."""
    overlap_events: bool = True
    """Overlap NVMe requests."""
    thread_count: PositiveInt = 1
    """Threads of an NVMe request."""

    def to_deepspeed(self) -> dict[str, Any]:
        """Returns the block of DeepSpeed's config; what concerns NVMe only for that device."""
        block: dict[str, Any] = {"device": self.device.value, "pin_memory": self.pin_memory}
        if self.device == DeepSpeedOffloadDevice.CPU:
            return {**block, "buffer_count": self.buffer_count}
        names = ("block_size", "queue_depth", "single_submit", "overlap_events", "thread_count")
        return {**block, "buffer_count": self.buffer_count_nvme, **{name: getattr(self, name) for name in names}}


class DeepSpeedParams(Params):
    """ZeRO: through DeepSpeed with trainers TRL_SFT and HF, by the same division through FSDP2 with trainer OUMI."""

    enable_deepspeed: bool = False
    """Divide the model by ZeRO. TRL_SFT and HF need GPUs and the package deepspeed."""
    deepspeed_config_path: PathText | None = None
    """A DeepSpeed JSON file, instead of all keys below; for TRL_SFT and HF."""
    zero_stage: ZeRORuntimeStage = ZeRORuntimeStage.ZERO_0
    """What is sharded."""
    offload_optimizer: OffloadConfig | None = None
    """Stages 1 to 3."""
    offload_param: OffloadConfig | None = None
    """Stage 3."""
    precision: DeepSpeedPrecision | None = None
    """BF16 computes in bfloat16, with float32 weights in the optimizer; FP16 follows mixed_precision_dtype."""
    overlap_comm: bool = False
    """Overlap communication and computation."""
    contiguous_gradients: bool = True
    """Copy gradients to one buffer."""
    reduce_bucket_size: Size = 5e8
    """Elements per reduction."""
    allgather_bucket_size: Size = 5e8
    """Elements per all-gather."""
    allgather_partitions: bool = True
    """Gather with all-gather."""
    reduce_scatter: bool = True
    """Average with reduce-scatter."""
    round_robin_gradients: bool = False
    """Spread gradient copies over ranks."""
    stage3_prefetch_bucket_size: Size = 5e7
    """Elements prefetched."""
    stage3_param_persistence_threshold: Size = 1e5
    """Smaller parameters are not sharded."""
    stage3_max_live_parameters: float = 1e9
    """Elements that stay gathered."""
    stage3_max_reuse_distance: float = 1e9
    """Elements within which a parameter stays gathered."""
    sub_group_size: float = 1e9
    """Elements per group of an optimizer step."""
    stage3_gather_16bit_weights_on_model_save: bool = False
    """Not needed: checkpoints and the final model always contain the whole weights."""
    train_batch_size: int | str = "auto"
    """Rows of a step."""
    train_micro_batch_size_per_gpu: int | str = "auto"
    """Rows of a micro-batch."""
    gradient_accumulation_steps: int | str = "auto"
    """Micro-batches of a step."""
    gradient_clipping: float | str = "auto"
    """Largest gradient norm."""
    zero_allow_untested_optimizer: bool = True
    """Accept any optimizer."""
    zero_force_ds_cpu_optimizer: bool = True
    """Use DeepSpeed's optimizer on the CPU."""
    activation_checkpointing: dict[str, Any] = {}
    """DeepSpeed's block of the same name."""
    memory_efficient_linear: bool = False
    """Not read by DeepSpeed's config."""
    steps_per_print: PositiveInt = 10
    """Steps between prints."""
    wall_clock_breakdown: bool = False
    """Time each part."""

    def complaints(self) -> Iterator[Complaint]:
        if self.offload_param is not None and self.zero_stage != ZeRORuntimeStage.ZERO_3:
            yield "offload_param", f"needs zero_stage ZERO_3, got {self.zero_stage.name}"
        if self.offload_optimizer is not None and self.zero_stage == ZeRORuntimeStage.ZERO_0:
            yield "offload_optimizer", "needs zero_stage ZERO_1, ZERO_2 or ZERO_3, got ZERO_0"

    def is_zero3_enabled(self) -> bool:
        """Returns True if parameters are sharded."""
        return self.enable_deepspeed and self.zero_stage == ZeRORuntimeStage.ZERO_3

    def requires_optimizer_offloading(self) -> bool:
        """Returns True if the state of the optimizer is kept out of the memory of the GPU."""
        return self.enable_deepspeed and self.offload_optimizer is not None

    def requires_param_offloading(self) -> bool:
        """Returns True if parameters are kept out of the memory of the GPU."""
        return self.enable_deepspeed and self.offload_param is not None

    def unread_keys(self) -> set[str]:
        """Returns the keys whose value is not the default, and which the stage does not read."""
        others = _OF_STAGES_0_TO_2 if self.zero_stage == ZeRORuntimeStage.ZERO_3 else _OF_STAGE_3
        default = DeepSpeedParams()
        return {name for name in others if getattr(self, name) != getattr(default, name)}

    def to_deepspeed(self) -> dict[str, Any]:
        """Returns DeepSpeed's config, in which transformers replaces `auto` by the values of `training`."""
        of_stage = _OF_STAGE_3 if self.zero_stage == ZeRORuntimeStage.ZERO_3 else _OF_STAGES_0_TO_2
        zero: dict[str, Any] = {"stage": int(self.zero_stage.value)}
        zero |= {name: _whole(getattr(self, name)) for name in (*_OF_ALL_STAGES, *of_stage)}
        for name in ("offload_optimizer", "offload_param"):
            if (offload := getattr(self, name)) is not None:
                zero[name] = offload.to_deepspeed()
        config: dict[str, Any] = {"zero_optimization": zero, **{name: getattr(self, name) for name in _TOP_LEVEL}}
        if self.precision is not None:
            config[self.precision.value] = dict(_PRECISION_BLOCKS[self.precision])
        if self.activation_checkpointing:
            config["activation_checkpointing"] = dict(self.activation_checkpointing)
        return config


_OF_ALL_STAGES = ("overlap_comm", "contiguous_gradients", "reduce_bucket_size")
_OF_STAGES_0_TO_2 = ("allgather_bucket_size", "allgather_partitions", "reduce_scatter", "round_robin_gradients")
_OF_STAGE_3 = (
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "sub_group_size", "stage3_gather_16bit_weights_on_model_save",
)  # fmt: skip
"""Keys of the block `zero_optimization`."""
_TOP_LEVEL = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown",
)  # fmt: skip
_PRECISION_BLOCKS: dict[DeepSpeedPrecision, dict[str, Any]] = {
    DeepSpeedPrecision.BF16: {"enabled": "auto"},
    DeepSpeedPrecision.FP16: {
        "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
        "min_loss_scale": 1,
    },
}  # fmt: skip
"""The blocks of the dtypes; `training.mixed_precision_dtype` enables them."""


def _whole(value: Any) -> Any:
    """Returns a size such as 5e8 as the integer that DeepSpeed expects."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
