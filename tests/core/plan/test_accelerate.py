# SPDX-License-Identifier: Apache-2.0
"""What Accelerate divides: the keys of `fsdp` and `deepspeed` as transformers and Accelerate take them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from trl import SFTConfig

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.facts import Facts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.trainers.trl_methods import arguments

GPU = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, num_rows=1000)
CPU = Facts("cpu", "CPU", False, 8, 80 << 30, 1 << 40, num_rows=1000)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Restores the variables that the classes of transformers and Accelerate set."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def config_of(trainer: str = "TRL_SFT", dtype: str = "float32", **sections: dict[str, Any]) -> TrainingConfig:
    training = {"trainer_type": trainer, "output_dir": "out", **sections.pop("training", {})}
    return TrainingConfig.model_validate(
        {
            "model": {"model_name": "m", "torch_dtype_str": dtype},
            "data": {"train": {"datasets": [{"dataset_name": "yahma/alpaca-cleaned"}]}},
            "training": training,
            **sections,
        }
    )


def sharded(trainer: str = "TRL_SFT", dtype: str = "float32", training: Any = None, **fsdp: Any) -> Plan:
    config = config_of(trainer, dtype, training=training or {}, fsdp={"enable_fsdp": True, **fsdp})
    return make_plan(config, GPU, world_size=8, ranks_per_node=4)


def with_deepspeed(training: Any = None, **deepspeed: Any) -> TrainingConfig:
    return config_of(training=training or {}, deepspeed={"enable_deepspeed": True, **deepspeed})


@pytest.mark.parametrize(("trainer", "config_class"), [("TRL_SFT", SFTConfig), ("HF", TrainingArguments)])
def test_fsdp_becomes_what_accelerate_takes(trainer: str, config_class: Any) -> None:
    plan = sharded(
        trainer, cpu_offload=True, sharding_strategy="SHARD_GRAD_OP", state_dict_type="SHARDED_STATE_DICT",
        transformer_layer_cls="transformers.models.llama.LlamaDecoderLayer,Other", mixed_precision="bf16",
        training={"enable_gradient_checkpointing": True},
    )  # fmt: skip
    given = arguments(plan)
    # As a GPU would have it, but for what a machine without one refuses.
    settings = config_class(**{**given, "use_cpu": True, "bf16": False, "dataloader_pin_memory": False})
    assert given["bf16"] is True
    assert not settings.activation_checkpointing
    plugin = FullyShardedDataParallelPlugin(**settings.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is False
    assert plugin.activation_checkpointing is True
    assert plugin.cpu_ram_efficient_loading is False
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer", "Other"]


@pytest.mark.parametrize(
    ("fsdp", "reshards", "num_replicas"),
    [
        ({"sharding_strategy": "FULL_SHARD"}, True, 1),
        ({"sharding_strategy": "HYBRID_SHARD"}, True, 2),
        ({"sharding_strategy": "HYBRID_SHARD_ZERO2"}, False, 2),
    ],
)
def test_a_strategy_decides_copies_and_when_weights_are_freed(
    fsdp: dict[str, Any], reshards: bool, num_replicas: int
) -> None:
    settings = sharded(**fsdp).accelerate
    assert settings.fsdp is not None
    assert (settings.fsdp["reshard_after_forward"], settings.num_replicas) == (reshards, num_replicas)


@pytest.mark.parametrize(
    ("fsdp", "note"),
    [
        ({"forward_prefetch": True}, "not read: fsdp.forward_prefetch: Accelerate's FSDP2 has no such setting"),
        ({"backward_prefetch": "BACKWARD_POST"}, "not read: fsdp.backward_prefetch"),
        ({"use_orig_params": False, "sync_module_states": False},
         "not read: fsdp.use_orig_params, fsdp.sync_module_states"),
        ({"auto_wrap_policy": "SIZE_BASED_WRAP"}, "weights are gathered block by block all the same"),
        ({"state_dict_type": "LOCAL_STATE_DICT"}, "it is taken for SHARDED_STATE_DICT"),
        ({"mixed_precision": "bf16", "dtype": "bfloat16"}, "not read: fsdp.mixed_precision: the weights are bfloat16"),
    ],
)  # fmt: skip
def test_a_key_of_fsdp_without_a_meaning_is_noted(fsdp: dict[str, Any], note: str) -> None:
    assert [text for text in sharded(**fsdp).notes if note in text]


def test_no_shard_and_a_single_process_divide_nothing() -> None:
    assert arguments(sharded(sharding_strategy="NO_SHARD"))["fsdp"] is False
    plan = make_plan(config_of(fsdp={"enable_fsdp": True}), GPU)
    assert arguments(plan)["fsdp"] is False
    assert [note for note in plan.notes if "the run is a single process, so nothing is sharded" in note]


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
def test_fsdp_and_deepspeed_of_other_trainers_are_refused_on_a_cpu(trainer: str) -> None:
    with pytest.raises(ConfigError, match=rf"fsdp.enable_fsdp: .* {trainer} .*trainer_type: OUMI"):
        make_plan(config_of(trainer, fsdp={"enable_fsdp": True}), CPU, world_size=2, ranks_per_node=2)
    with pytest.raises(ConfigError, match=rf"deepspeed.enable_deepspeed: {trainer} runs DeepSpeed on GPUs only"):
        make_plan(config_of(trainer, deepspeed={"enable_deepspeed": True}), CPU)


def test_deepspeed_that_is_not_installed_is_named_before_anything_is_loaded() -> None:
    facts = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, missing=frozenset({"deepspeed"}))
    with pytest.raises(ConfigError, match=r"not installed: pip install deepspeed\. .*OUMI"):
        make_plan(with_deepspeed(), facts)


def test_deepspeed_of_stage_2_becomes_its_config() -> None:
    config = with_deepspeed(
        zero_stage="ZERO_2", precision="BF16", offload_optimizer={"device": "CPU", "buffer_count": 8},
        reduce_bucket_size=2e8, round_robin_gradients=True, activation_checkpointing={"partition_activations": True},
    )  # fmt: skip
    assert config.deepspeed.to_deepspeed() == {
        "zero_optimization": {
            "stage": 2, "overlap_comm": False, "contiguous_gradients": True, "reduce_bucket_size": 200_000_000,
            "allgather_bucket_size": 500_000_000, "allgather_partitions": True, "reduce_scatter": True,
            "round_robin_gradients": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": True, "buffer_count": 8},
        },
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": True,
        "steps_per_print": 10, "wall_clock_breakdown": False, "bf16": {"enabled": "auto"},
        "activation_checkpointing": {"partition_activations": True},
    }  # fmt: skip
    assert config.deepspeed.requires_optimizer_offloading()
    assert not config.deepspeed.requires_param_offloading()


def zero_3() -> TrainingConfig:
    return with_deepspeed(
        zero_stage="ZERO_3", precision="BF16", offload_param={}, reduce_bucket_size="auto",
        stage3_prefetch_bucket_size="auto", stage3_param_persistence_threshold="auto", overlap_comm=True,
        training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_grad_norm": 0.5},
    )  # fmt: skip


def test_deepspeed_of_stage_3_is_what_accelerate_takes() -> None:
    plan = make_plan(zero_3(), GPU)
    settings = HfDeepSpeedConfig(arguments(plan)["deepspeed"])
    assert settings.is_zero3()
    assert settings.is_offload()
    assert plan.accelerate.divides_weights


def test_transformers_replaces_auto_in_the_config_of_deepspeed() -> None:
    pytest.importorskip("deepspeed")
    given = arguments(make_plan(zero_3(), GPU, world_size=8, ranks_per_node=8))
    assert given["bf16"] is True
    settings = HfTrainerDeepSpeedConfig(given["deepspeed"])
    plain = {name: value for name, value in given.items() if name not in ("deepspeed", "bf16")}
    training_arguments = SFTConfig(**{**plain, "use_cpu": True, "bf16": False, "dataloader_pin_memory": False})
    training_arguments.bf16 = True
    settings.trainer_config_process(training_arguments)
    assert settings.mismatches == []
    filled = settings.config
    assert filled["bf16"]["enabled"] is True
    assert (filled["train_micro_batch_size_per_gpu"], filled["gradient_accumulation_steps"]) == (2, 4)
    assert filled["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("deepspeed", "key", "words"),
    [
        ({"offload_optimizer": {"device": "NVME"}, "zero_stage": "ZERO_2"}, "deepspeed.offload_optimizer.device",
         "NVME needs a path"),
        ({"gradient_accumulation_steps": 3}, "deepspeed.gradient_accumulation_steps", "is 1; set it to auto"),
        ({"gradient_clipping": 0.1}, "deepspeed.gradient_clipping", "training.max_grad_norm is 1.0"),
        ({"deepspeed_config_path": "none.json"}, "deepspeed.deepspeed_config_path", "No such file"),
    ],
)  # fmt: skip
def test_a_config_of_deepspeed_that_cannot_be_is_refused(deepspeed: dict[str, Any], key: str, words: str) -> None:
    problems = {problem.key: problem.message for problem in refusals(with_deepspeed(**deepspeed))}
    assert words in problems[key]


def test_a_file_of_deepspeed_decides_alone(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text("[1")
    config = with_deepspeed(deepspeed_config_path=str(file), zero_stage="ZERO_2")
    assert "not valid JSON" in refusals(config)[0].message
    settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}
    file.write_text(json.dumps(settings))
    assert refusals(config) == []
    plan = make_plan(config, GPU)
    assert arguments(plan)["deepspeed"] == settings
    assert plan.accelerate.divides_weights
    assert [note for note in plan.notes if note.startswith("not read: deepspeed.zero_stage: the file of")]
