# SPDX-License-Identifier: Apache-2.0
"""Plans what Accelerate divides over the ranks for the trainers of TRL and transformers. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oumi.core.configs import TrainingConfig
from oumi.core.configs.deepspeed import DeepSpeedOffloadDevice, DeepSpeedParams, DeepSpeedPrecision
from oumi.core.configs.fsdp import FSDPParams, ShardingStrategy, StateDictType
from oumi.core.errors import ConfigError
from oumi.core.plan.facts import Facts
from oumi.core.plan.sharding import HYBRID, KEEPS_GATHERED, class_names, strategy_notes
from oumi.core.system.filesystem import expanded


@dataclass(frozen=True)
class AccelerateSettings:
    """The settings of Accelerate, through the arguments of transformers."""

    fsdp: Mapping[str, Any] | None = None
    """`fsdp_config`, None without FSDP."""
    num_replicas: int = 1
    """Copies of the model that FSDP keeps, each divided over as many ranks."""
    deepspeed: Mapping[str, Any] | None = None
    """Config of DeepSpeed, None without it."""
    computes_in_bf16: bool = False
    """Compute in bfloat16 with float32 weights, as the section says, whatever `training.mixed_precision_dtype`."""

    @property
    def divides_weights(self) -> bool:
        """Returns True if no rank holds the whole model."""
        zero = (self.deepspeed or {}).get("zero_optimization", {})
        return self.fsdp is not None or zero.get("stage") == 3


def plan_accelerate(
    config: TrainingConfig, facts: Facts, world_size: int, ranks_per_node: int, dtype: str
) -> AccelerateSettings:
    """Returns how Accelerate divides the model; all is off for the trainer OUMI.

    Args:
        config: The run.
        facts: The machine.
        world_size: Number of ranks.
        ranks_per_node: Number of ranks of a machine, which hold one copy together with the hybrid strategies.
        dtype: Dtype of the weights.

    Raises:
        ConfigError: The device or the installed packages cannot carry it out.
    """
    fsdp, deepspeed, trainer = config.fsdp, config.deepspeed, config.training.trainer_type
    if trainer.spec.is_native:
        return AccelerateSettings()
    if deepspeed.enable_deepspeed:
        return _plan_deepspeed(config, facts, world_size)
    if not fsdp.enable_fsdp or world_size == 1 or fsdp.sharding_strategy == ShardingStrategy.NO_SHARD:
        return AccelerateSettings()
    if facts.device == "cpu":
        raise ConfigError(
            f"fsdp.enable_fsdp: Accelerate shards on GPUs only; on a CPU, {trainer.name} would keep the whole model on "
            "each rank. Use training.trainer_type: OUMI, or set it to false"
        )
    num_shards = ranks_per_node if fsdp.sharding_strategy in HYBRID else world_size
    if num_shards == 1:
        return AccelerateSettings()
    return AccelerateSettings(
        fsdp=_fsdp_config(fsdp, config.training.enable_gradient_checkpointing),
        num_replicas=world_size // num_shards,
        computes_in_bf16=fsdp.mixed_precision == "bf16" and facts.has_bf16 and dtype == "float32",
    )


def _fsdp_config(fsdp: FSDPParams, recomputes: bool) -> dict[str, Any]:
    """Returns `fsdp_config` of transformers, for FSDP2."""
    sharded_state = fsdp.state_dict_type != StateDictType.FULL_STATE_DICT
    blocks = class_names(fsdp)
    return {
        "version": 2,
        "reshard_after_forward": fsdp.sharding_strategy not in KEEPS_GATHERED,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        **({"transformer_layer_cls_to_wrap": list(blocks)} if blocks else {}),  # else those that the model names
        "cpu_offload": fsdp.cpu_offload,
        "state_dict_type": "SHARDED_STATE_DICT" if sharded_state else "FULL_STATE_DICT",
        # Each rank maps the same files into memory, so they are there once for all ranks of a machine.
        "cpu_ram_efficient_loading": False,
        "activation_checkpointing": recomputes,
    }


def _plan_deepspeed(config: TrainingConfig, facts: Facts, world_size: int) -> AccelerateSettings:
    deepspeed, trainer = config.deepspeed, config.training.trainer_type.name
    if facts.device == "cpu":
        raise ConfigError(
            f"deepspeed.enable_deepspeed: {trainer} runs DeepSpeed on GPUs only; use training.trainer_type: OUMI, "
            "which divides the model as zero_stage says on any device, or set it to false"
        )
    if "deepspeed" in facts.missing:
        raise ConfigError(
            f"deepspeed.enable_deepspeed: {trainer} needs the package deepspeed, which is not installed: pip install "
            "deepspeed. training.trainer_type: OUMI divides the model as zero_stage says without it"
        )
    rows = config.training.per_device_train_batch_size
    if isinstance(rows, int) and deepspeed.train_batch_size != "auto":
        rows_per_step = rows * config.training.gradient_accumulation_steps * world_size
        if deepspeed.train_batch_size != rows_per_step:
            raise ConfigError(
                f"deepspeed.train_batch_size: got {deepspeed.train_batch_size}, but a step has {rows_per_step} rows; "
                "set it to auto"
            )
    path = deepspeed.deepspeed_config_path
    return AccelerateSettings(
        deepspeed=deepspeed.to_deepspeed() if path is None else _read_file(path),
        computes_in_bf16=path is None and deepspeed.precision == DeepSpeedPrecision.BF16 and facts.has_bf16,
    )


def accelerate_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields (key, message) of what the trainers of TRL and transformers cannot divide over ranks."""
    training, fsdp, deepspeed = config.training, config.fsdp, config.deepspeed
    if training.trainer_type.spec.is_native:
        return
    if fsdp.enable_fsdp and fsdp.sharding_strategy != ShardingStrategy.NO_SHARD:
        if fsdp.mixed_precision == "fp16" or training.mixed_precision_dtype.name == "FP16":
            key = "fsdp.mixed_precision" if fsdp.mixed_precision == "fp16" else "training.mixed_precision_dtype"
            yield key, "fp16 needs a loss scale, which is not supported with fsdp; use bf16"
        if training.optimizer == "adafactor":
            yield (
                "training.optimizer",
                "adafactor needs whole weights, and fsdp divides them over the ranks; use adamw_torch",
            )
    if deepspeed.enable_deepspeed:
        yield from _deepspeed_problems(config, deepspeed)


def _deepspeed_problems(config: TrainingConfig, deepspeed: DeepSpeedParams) -> Iterator[tuple[str, str]]:
    if deepspeed.deepspeed_config_path is not None:
        yield from _file_problems(deepspeed.deepspeed_config_path)
        return
    for name in ("offload_optimizer", "offload_param"):
        offload = getattr(deepspeed, name)
        if offload is not None and offload.device == DeepSpeedOffloadDevice.NVME:
            yield (
                f"deepspeed.{name}.device",
                "NVME needs a path, for which there is no key: write a file for DeepSpeed with nvme_path, and set "
                "deepspeed.deepspeed_config_path",
            )
    equal = {
        "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "gradient_clipping": "max_grad_norm",
    }
    for name, other in equal.items():
        value, expected = getattr(deepspeed, name), getattr(config.training, other)
        if value not in ("auto", expected):
            yield f"deepspeed.{name}", f"got {value}, but training.{other} is {expected}; set it to auto"


def _file_problems(path: str) -> Iterator[tuple[str, str]]:
    key = "deepspeed.deepspeed_config_path"
    try:
        settings = _read_file(path)
    except OSError as error:
        yield key, f"{path}: {error.strerror or error}"
        return
    except ValueError as error:
        yield key, f"{path}: not valid JSON: {error}"
        return
    if not isinstance(settings, dict):
        yield key, f"{path}: expected a JSON object, got {type(settings).__name__}"


def _read_file(path: str) -> Any:
    return json.loads(Path(expanded(path)).read_text(encoding="utf-8"))


def accelerate_notes(config: TrainingConfig, settings: AccelerateSettings, dtype: str, size: int) -> Iterator[str]:
    """Yields where Accelerate differs from what the keys of `fsdp` and `deepspeed` suggest.

    Args:
        config: The run.
        settings: The settings of Accelerate.
        dtype: Dtype of the weights.
        size: Number of ranks.
    """
    if config.training.trainer_type.spec.is_native:
        return
    if config.deepspeed.enable_deepspeed:
        yield from _deepspeed_notes(config.deepspeed, dtype)
    elif config.fsdp.enable_fsdp:
        yield from _fsdp_notes(config, settings, dtype, size)


def _fsdp_notes(config: TrainingConfig, settings: AccelerateSettings, dtype: str, size: int) -> Iterator[str]:
    fsdp, default = config.fsdp, FSDPParams()
    yield from strategy_notes(fsdp, None if settings.fsdp is None else settings.num_replicas, size)
    if settings.fsdp is None:
        return
    if fsdp.auto_wrap_policy.name != "TRANSFORMER_BASED_WRAP":
        yield (
            f"not read: fsdp.auto_wrap_policy: {fsdp.auto_wrap_policy.name}: weights are gathered block by block all "
            "the same, as with TRANSFORMER_BASED_WRAP"
        )
    if fsdp.state_dict_type == StateDictType.LOCAL_STATE_DICT:
        yield "fsdp.state_dict_type: LOCAL_STATE_DICT has no equivalent in FSDP2; it is taken for SHARDED_STATE_DICT"
    if fsdp.mixed_precision == "bf16" and not settings.computes_in_bf16:
        yield f"not read: fsdp.mixed_precision: the weights are {dtype}"
    unread = {
        "use_orig_params": fsdp.use_orig_params is not None,
        "min_num_params": fsdp.min_num_params != default.min_num_params,
        "sync_module_states": not fsdp.sync_module_states,
        "forward_prefetch": fsdp.forward_prefetch,
        "backward_prefetch": fsdp.backward_prefetch != default.backward_prefetch,
    }
    if names := [f"fsdp.{name}" for name, is_changed in unread.items() if is_changed]:
        yield f"not read: {', '.join(names)}: Accelerate's FSDP2 has no such setting"
    arguments = {name: value for name, value in config.training.gradient_checkpointing_kwargs.items() if value}
    if config.training.enable_gradient_checkpointing and arguments:
        yield "not read: training.gradient_checkpointing_kwargs: FSDP recomputes whole blocks in its own way"


def _deepspeed_notes(deepspeed: DeepSpeedParams, dtype: str) -> Iterator[str]:
    default = DeepSpeedParams()
    if deepspeed.deepspeed_config_path is not None:
        own = ("enable_deepspeed", "deepspeed_config_path")
        fields = [name for name in DeepSpeedParams.model_fields if name not in own]
        if names := [f"deepspeed.{name}" for name in fields if getattr(deepspeed, name) != getattr(default, name)]:
            yield f"not read: {', '.join(names)}: the file of deepspeed.deepspeed_config_path decides"
        return
    if unread := sorted(deepspeed.unread_keys()):
        stage = deepspeed.zero_stage.name
        yield f"not read: {', '.join(f'deepspeed.{name}' for name in unread)}: {stage} has no such setting"
    if deepspeed.memory_efficient_linear:
        yield "not read: deepspeed.memory_efficient_linear: DeepSpeed reads it from no config"
    if deepspeed.is_zero3_enabled() and deepspeed.stage3_gather_16bit_weights_on_model_save:
        yield (
            "not read: deepspeed.stage3_gather_16bit_weights_on_model_save: checkpoints always contain the whole model"
        )
    if deepspeed.precision is None and dtype == "bfloat16":
        yield "deepspeed.precision: not set, so DeepSpeed turns the bfloat16 weights into float32; BF16 keeps them"
