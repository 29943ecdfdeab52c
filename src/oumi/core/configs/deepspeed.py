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


class DeepSpeedParams(Params):
    """ZeRO through DeepSpeed."""

    enable_deepspeed: bool = False
    """Use DeepSpeed."""
    deepspeed_config_path: PathText | None = None
    """A DeepSpeed JSON file, instead of all keys below."""
    zero_stage: ZeRORuntimeStage = ZeRORuntimeStage.ZERO_0
    """What is sharded."""
    offload_optimizer: OffloadConfig | None = None
    """Stages 1 to 3."""
    offload_param: OffloadConfig | None = None
    """Stage 3."""
    precision: DeepSpeedPrecision | None = None
    """Emits a block that follows mixed_precision_dtype."""
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
    """Gather the weights when saving."""
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
