# SPDX-License-Identifier: Apache-2.0
"""Files with the traits of the 70 FSDP and 4 DeepSpeed recipes that Oumi ships, each for every trainer that shards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from oumi.cli.config import check_file
from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import leaves
from oumi.core.errors import ConfigError
from oumi.core.plan.facts import Facts
from oumi.core.plan.plan import make_plan
from oumi.core.trainers.trl_methods import arguments

TRAINERS = ("TRL_SFT", "HF", "OUMI")
GPU = Facts("cuda", "GPU", True, 8, 80 << 30, 1 << 40, num_rows=1000)

# Name of the class of blocks -> a model of its family, how many files it has: 70 in all.
FAMILIES: dict[str | None, tuple[str, int]] = {
    "LlamaDecoderLayer": ("meta-llama/Llama-3.1-8B-Instruct", 22),
    "Qwen2DecoderLayer": ("Qwen/Qwen2.5-7B-Instruct", 6),
    "Gemma4TextDecoderLayer": ("google/gemma-4-12B-it", 4),
    "Llama4TextDecoderLayer": ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4),
    "Qwen3DecoderLayer": ("Qwen/Qwen3-8B", 4),
    "Qwen3MoeDecoderLayer": ("Qwen/Qwen3-30B-A3B", 3),
    "Gemma3DecoderLayer": ("google/gemma-3-12b-it", 3),
    "FalconH1DecoderLayer": ("tiiuae/Falcon-H1-7B-Instruct", 3),
    "GptOssDecoderLayer": ("openai/gpt-oss-20b", 2),
    "Qwen3NextDecoderLayer": ("Qwen/Qwen3-Next-80B-A3B-Instruct", 2),
    "Olmo3DecoderLayer": ("allenai/Olmo-3-7B-Instruct", 2),
    "Phi3DecoderLayer": ("microsoft/Phi-4-reasoning-plus", 2),
    "MolmoSequentialBlock": ("oumi-ai/Molmo-7B-D-0924", 2),
    "MolmoBlock": ("oumi-ai/Molmo-7B-O-0924", 1),
    "MllamaSelfAttentionDecoderLayer,MllamaCrossAttentionDecoderLayer": (
        "meta-llama/Llama-3.2-11B-Vision-Instruct", 1,
    ),
    "Qwen2_5_VLDecoderLayer": ("Qwen/Qwen2.5-VL-3B-Instruct", 1),
    "Qwen3VLMoeTextDecoderLayer": ("Qwen/Qwen3-VL-30B-A3B-Instruct", 1),
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer": ("HuggingFaceFW/ablation-model-fineweb-v1", 1),
    None: ("meta-llama/Llama-3.2-3B-Instruct", 6),
}  # fmt: skip
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON: dict[str, Any] = {
    "optimizer": "adamw_torch_fused", "learning_rate": 2e-5, "num_train_epochs": 1, "logging_steps": 100,
    "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2, "enable_gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False}, "ddp_find_unused_parameters": False,
    "dataloader_num_workers": "auto", "dataloader_prefetch_factor": 32, "empty_device_cache_steps": 50,
    "include_performance_metrics": True, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "weight_decay": 0.01,
    "save_steps": 200, "save_final_model": True, "compile": False, "log_model_summary": False,
}  # fmt: skip
# Each trait is in every n-th file, as often as in Oumi's: name -> (n, section, values).
TRAITS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "lora": (2, "training", {"use_peft": True, "learning_rate": 3e-4}),
    "hybrid": (3, "fsdp", {"sharding_strategy": "HYBRID_SHARD"}),
    "offload": (5, "fsdp", {"cpu_offload": True}),
    "original parameters": (6, "fsdp", {"use_orig_params": True}),
    "sharded state": (7, "fsdp", {"state_dict_type": "SHARDED_STATE_DICT"}),
    "mixed": (13, "fsdp", {"mixed_precision": "bf16"}),
    "by size": (14, "fsdp", {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 100000}),
    "gathers late": (35, "fsdp", {"backward_prefetch": "BACKWARD_POST"}),
    "gathers early": (37, "fsdp", {"backward_prefetch": "BACKWARD_PRE", "sync_module_states": True}),
    "liger": (4, "model", {"enable_liger_kernel": True}),
    "compiled": (9, "training", {"compile": True}),
    "flash": (15, "model", {"attn_implementation": "flash_attention_2"}),
    "float32": (14, "model", {"torch_dtype_str": "float32"}),
    "clipped": (5, "training", {"max_grad_norm": 0.5}),
    "not clipped": (6, "training", {"max_grad_norm": 0.0}),
    "plain optimizer": (7, "training", {"optimizer": "adamw_torch"}),
    "keeps activations": (6, "training", {"enable_gradient_checkpointing": False}),
    "deterministic": (40, "training", {"use_deterministic": True}),
    "packed": (20, "data", {"pack": True}),
    "streamed": (21, "data", {"stream": True}),
    "images": (8, "data", {"collator_name": "vision_language_with_padding"}),
    "answers": (9, "data", {"train_target": "ALL_ASSISTANT_TURNS"}),
    "adafactor": (34, "training", {"optimizer": "adafactor"}),
}  # fmt: skip
DEEPSPEED: dict[str, dict[str, Any]] = {
    "z2": {"zero_stage": "ZERO_2", "allgather_partitions": True, "allgather_bucket_size": 500000000,
           "reduce_scatter": True, "reduce_bucket_size": 500000000, "round_robin_gradients": False},
    "z3": {"zero_stage": "ZERO_3", "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
           "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1000000000,
           "stage3_max_reuse_distance": 1000000000, "sub_group_size": 1000000000},
    "z3_offload": {"zero_stage": "ZERO_3",
                   "offload_optimizer": {"device": "CPU", "pin_memory": True, "buffer_count": 4},
                   "offload_param": {"device": "CPU", "pin_memory": True, "buffer_count": 4},
                   "zero_force_ds_cpu_optimizer": False},
    "z3_memory": {"zero_stage": "ZERO_3", "reduce_bucket_size": 50000000, "stage3_prefetch_bucket_size": 50000000,
                  "stage3_param_persistence_threshold": 100000, "stage3_max_live_parameters": 100000000,
                  "stage3_max_reuse_distance": 100000000, "sub_group_size": 100000000,
                  "offload_optimizer": {"device": "CPU", "pin_memory": True, "buffer_count": 4},
                  "zero_force_ds_cpu_optimizer": False, "stage3_gather_16bit_weights_on_model_save": False},
}  # fmt: skip
ALL_DEEPSPEED = {
    "enable_deepspeed": True, "precision": "BF16", "overlap_comm": True, "contiguous_gradients": True,
    "steps_per_print": 10, "wall_clock_breakdown": False, "zero_allow_untested_optimizer": True,
}  # fmt: skip


def fsdp_files() -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    """Yields name, content and traits of each FSDP file."""
    models = [(block, model) for block, (model, count) in FAMILIES.items() for _ in range(count)]
    for i, (block, model) in enumerate(models):
        traits = {name for name, (every, _, _) in TRAITS.items() if i % every == every - 1}
        sees = any(word in model for word in ("VL", "Vision", "Molmo"))
        if sees or "images" in traits:
            traits = (traits | {"images"}) - {"packed", "streamed", "answers"}
        yield f"fsdp_{i:02}", content(model, block, traits), traits


def content(model: str, block: str | None, traits: set[str]) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "model_name": model, "torch_dtype_str": "bfloat16", "model_max_length": 2048,
            "attn_implementation": "sdpa", "trust_remote_code": True,
        },
        "data": {}, "training": {**COMMON, "output_dir": "out"},
        "fsdp": {
            "enable_fsdp": True, "forward_prefetch": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls": block,
        },
    }  # fmt: skip
    for name in TRAITS:
        if name in traits:
            _, section, values = TRAITS[name]
            sections[section].update(values)
    if "lora" in traits:
        sections["peft"] = {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": TARGETS, "q_lora": False}
    if "images" in traits:
        sections["model"] |= {"freeze_layers": ["model.visual"], "chat_template": "qwen2-vl-instruct"}
    if "streamed" in traits:
        sections["training"] |= {"max_steps": 100}
    if sections["fsdp"]["auto_wrap_policy"] == "SIZE_BASED_WRAP":
        del sections["fsdp"]["transformer_layer_cls"]
    dataset = "merve/vqav2-small" if "images" in traits else "yahma/alpaca-cleaned"
    sections["data"] = {"train": {"datasets": [{"dataset_name": dataset}], **sections["data"]}}
    return sections


def deepspeed_files() -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    for name, section in DEEPSPEED.items():
        sections = content("meta-llama/Llama-3.1-8B-Instruct", None, set())
        del sections["fsdp"]
        sections["deepspeed"] = {**ALL_DEEPSPEED, **section}
        yield f"deepspeed_{name}", sections, set()


FILES = {name: (sections, traits) for name, sections, traits in [*fsdp_files(), *deepspeed_files()]}


def refused(sections: dict[str, Any]) -> dict[str, str]:
    """Returns what is rightly refused: key and words."""
    problems = {}
    if sections["training"]["optimizer"] == "adafactor":
        problems["training.optimizer"] = "needs whole weights, and fsdp divides them"
    return problems


def test_the_files_have_the_traits_of_those_that_are_shipped() -> None:
    assert len(FILES) == 74
    assert len([block for block in FAMILIES if block]) == 18
    for name in TRAITS:
        assert any(name in traits for _, traits in FILES.values()), name
    used = {f"{section}.{key}" for sections, _ in FILES.values() for section in sections for key in sections[section]}
    keys = {key for key in leaves(TrainingConfig()) if key.startswith(("fsdp.", "deepspeed."))}
    never_shipped = {
        "deepspeed.deepspeed_config_path", "deepspeed.train_batch_size", "deepspeed.train_micro_batch_size_per_gpu",
        "deepspeed.gradient_accumulation_steps", "deepspeed.gradient_clipping", "deepspeed.activation_checkpointing",
        "deepspeed.memory_efficient_linear",
    }  # fmt: skip
    assert keys - used == never_shipped


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_file_passes_the_check_or_is_refused_by_name(tmp_path: Path, trainer: str) -> None:
    start = time.process_time()
    for name, (sections, _) in FILES.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**sections, "training": {**sections["training"], "trainer_type": trainer}}))
        expected = refused(sections)
        if not expected:
            assert check_file(str(file)) == [], name
            continue
        with pytest.raises(ConfigError) as error:
            check_file(str(file))
        problems = {problem.key: problem.message for problem in error.value.problems}
        assert problems.keys() == expected.keys(), name
        assert all(words in problems[key] for key, words in expected.items()), name
    assert (time.process_time() - start) / len(FILES) < 0.2, "seconds of a check"


@pytest.mark.sample(6)
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", FILES)
def test_every_file_becomes_a_plan_that_divides_the_model(trainer: str, name: str) -> None:
    sections, traits = FILES[name]
    if refused(sections):
        sections = {**sections, "training": {**sections["training"], "optimizer": "adamw_torch"}}
        sections["data"] = {"train": {"datasets": [{"dataset_name": "yahma/alpaca-cleaned"}]}}
    training = {**sections["training"], "trainer_type": trainer}
    plan = make_plan(TrainingConfig.model_validate({**sections, "training": training}), GPU, 16, 8)
    if trainer == "OUMI":
        assert plan.sharding is not None
        return
    given = arguments(plan)
    assert given["fsdp"] is ("fsdp" in sections)
    assert (given["deepspeed"] is None) is ("fsdp" in sections)
    assert plan.accelerate.num_replicas == (2 if "hybrid" in traits else 1)


def test_a_check_loads_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(FILES["fsdp_00"][0]))
    program = (
        "import sys; from oumi.cli.config import check_file; check_file(sys.argv[1]); "
        "sys.exit(bool({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
