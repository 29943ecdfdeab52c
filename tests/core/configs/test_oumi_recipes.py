# SPDX-License-Identifier: Apache-2.0
"""Files with the traits of every training recipe that Oumi ships: their check passes, or tells what is not built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from oumi.cli.config import check_file
from oumi.core.configs import TrainerType, TrainingConfig
from oumi.core.configs.loading import leaves
from oumi.core.data.datasets.lookup import dataset_for
from oumi.core.errors import ConfigError
from oumi.core.plan.plan import make_plan
from oumi.core.trainers.trl_methods import arguments
from tests.core.configs.test_sharded_files import GPU

TABLE = Path(__file__).with_name("oumi_recipes.txt")
LEFT_OUT = {"TRL_GRPO", "VERL_GRPO", "TRL_GKD", "TRL_GOLD"}
"""Reinforcement learning and distillation."""
TEMPLATES = {
    "Qwen2-VL": "qwen2-vl-instruct", "Qwen2.5-VL": "qwen2-vl-instruct", "Qwen3-VL": "qwen3-vl-instruct",
    "llava-1.5": "llava", "Phi-3-vision": "phi3-instruct", "Vision-Instruct": "llama3-instruct", "Molmo": "molmo",
    "InternVL3": "internvl3",
}  # fmt: skip
FROZEN = {
    "Qwen2": "model.visual",
    "Llama": "vision_model",
    "llava": "vision_tower",
    "Phi-3": "model.vision_embed_tokens",
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """The traits of a recipe."""

    trainer: str
    weights: str
    division: str
    model: str
    dataset: str
    extras: frozenset[str]
    number: int

    @property
    def sees_images(self) -> bool:
        return bool(self.extras & {"vl_pad", "vl_sft"}) or "vision" in self.dataset or "RLAIF" in self.dataset


def recipes() -> Iterator[Recipe]:
    number = 0
    for line in TABLE.read_text().splitlines():
        if line.startswith("#"):
            continue
        count, *columns, extras = line.split()
        for _ in range(int(count)):
            yield Recipe(*columns, frozenset(extras.split(",")), number)
            number += 1


def content(recipe: Recipe) -> dict[str, Any]:
    """Returns a config with the keys that recipes of the kind set, and values as they write them."""
    model = {
        "model_name": recipe.model, "torch_dtype_str": "bfloat16", "model_max_length": 2048,
        "attn_implementation": "sdpa", "trust_remote_code": True,
        "load_pretrained_weights": recipe.weights != "scratch",
        "enable_liger_kernel": "liger" in recipe.extras,
    }  # fmt: skip
    sections = {"model": model, "data": {"train": train_split(recipe)}, "training": training(recipe)}
    for part, value in TEMPLATES.items():
        if part in recipe.model and recipe.sees_images:
            model["chat_template"] = value
    if recipe.sees_images and recipe.weights == "full":
        model["freeze_layers"] = [next((path for part, path in FROZEN.items() if part in recipe.model), "vision_tower")]
    for part, values in OF_MODELS.items():
        if part in recipe.model:
            model |= values
    if "val" in recipe.extras:
        sections["data"]["validation"] = validation_split(recipe)
        sections["training"] |= {"eval_strategy": "steps", "eval_steps": 500, "per_device_eval_batch_size": 1}
    if recipe.weights in ("lora", "qlora"):
        sections["peft"] = adapter(recipe)
    if recipe.division != "-":
        sections |= division(recipe)
    return sections


OF_MODELS: dict[str, dict[str, Any]] = {
    "Falcon-E": {"model_revision": "prequantized"},
    "Falcon-H1": {"tokenizer_kwargs": {"pad_token": "<|pad|>"}},
    "gpt-oss": {"model_kwargs": {"quantization_config": {"quant_method": "mxfp4"}}},
    "gpt2": {"torch_dtype_str": "float32", "tokenizer_pad_token": "<|endoftext|>"},
    "Llama-3.1-70B": {"tokenizer_pad_token": "<|finetune_right_pad_id|>"},
    "pythia": {"tokenizer_name": "EleutherAI/pythia-14m", "tokenizer_pad_token": "<|padding|>"},
    "Qwen2.5-7B": {"model_kwargs": {"rope_scaling": {
        "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
    }}},
    "Meta-Llama-3.1-8B": {"model_kwargs": {"disable_dropout": True, "max_position_embeddings": 8192},
                          "shard_for_eval": True},
}  # fmt: skip


def train_split(recipe: Recipe) -> dict[str, Any]:
    dataset: dict[str, Any] = {"dataset_name": recipe.dataset}
    split: dict[str, Any] = {"datasets": [dataset]}
    if recipe.sees_images:
        dataset |= {
            "split": "validation", "shuffle": True, "seed": 42, "transform_num_workers": "auto",
            "trust_remote_code": True, "dataset_kwargs": {"processor_name": recipe.model, "return_tensors": True},
        }  # fmt: skip
        split["use_torchdata"] = "td" in recipe.extras
    if recipe.dataset == "hf_vision":
        dataset["dataset_kwargs"] = {
            "hf_dataset_path": "somebody/pictures", "image_column": "image", "question_column": "problem",
            "answer_column": "solution", "return_conversations": True, "limit": 512,
        }  # fmt: skip
    if recipe.dataset == "HuggingFaceDataset":
        dataset["dataset_kwargs"] = {"hf_dataset_path": "somebody/claims", "messages_column": "messages"}
    if "PromptResponse" in recipe.dataset:
        dataset["dataset_kwargs"] = {
            "hf_dataset_path": "somebody/puzzles", "prompt_column": "question", "response_column": "solution",
        }  # fmt: skip
    if "vl_sft" in recipe.extras:
        split |= {"collator_name": "vision_language_sft", "collator_kwargs": {"process_individually": True}}
    if "vl_pad" in recipe.extras:
        split["collator_name"] = "vision_language_with_padding"
    if "completions" in recipe.extras:
        split["collator_name"] = "text_completions_only_with_padding"
        split["collator_kwargs"] = {"response_template": "<|assistant|>\n", "instruction_template": "<|user|>\n"}
        if recipe.number % 2:
            split["collator_kwargs"] = {}
            split["train_target"] = "ALL_ASSISTANT_TURNS"
    if "stream" in recipe.extras:
        split |= {"stream": True, "pack": True}
        if "fineweb" in recipe.dataset:
            dataset |= {"subset": "sample-10BT", "dataset_kwargs": {"seq_length": 1024}}
    if "ChatQA" in recipe.dataset:  # a mixture
        split["datasets"] = [
            {"dataset_name": recipe.dataset, "subset": subset, "split": "train", "mixture_proportion": share}
            for subset, share in {"sft": 0.5, "drop": 0.3, "tatqa-arithmetic": 0.2}.items()
        ]
        split |= {"mixture_strategy": "first_exhausted", "seed": 42}
    return split


def validation_split(recipe: Recipe) -> dict[str, Any]:
    split: dict[str, Any] = {"datasets": [{"dataset_name": recipe.dataset, "split": "validation"}], "seed": 42}
    if "completions" in recipe.extras:
        split |= {"collator_name": "text_completions_only_with_padding", "train_target": "ALL_ASSISTANT_TURNS"}
    return split


def training(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {
        "trainer_type": recipe.trainer, "output_dir": "out", "optimizer": "adamw_torch_fused", "learning_rate": "2e-05",
        "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8,
        "enable_gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "weight_decay": 0.01, "max_grad_norm": 0.5,
        "dataloader_num_workers": "auto", "dataloader_prefetch_factor": 32, "ddp_find_unused_parameters": False,
        "dataloader_main_process_only": False, "logging_steps": 100, "save_steps": 0, "save_final_model": True,
        "enable_wandb": True, "include_performance_metrics": True, "log_model_summary": False,
        "compile": "compile" in recipe.extras, "empty_device_cache_steps": 50, "use_peft": "lora" in recipe.weights,
    }  # fmt: skip
    if recipe.number % 5 == 0:
        values |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": "1e-08"}}
    if recipe.number % 7 == 0:
        values |= {"max_steps": 20, "warmup_steps": 10, "logging_dir": "${training.output_dir}/runs"}
    if "stream" in recipe.extras:
        values |= {"max_steps": 1000, "optimizer": "adamw_torch" if recipe.division != "-" else "adafactor"}
    return values | OF_TRAINERS.get(recipe.trainer, {}) | OF_DATA.get(recipe.dataset, {})


OF_DATA: dict[str, dict[str, Any]] = {
    "nvidia/ChatQA-Training-Data": {"trainer_kwargs": {"max_seq_length": "${model.model_max_length}"}},
    "CohereForAI/aya_dataset": {
        "trainer_kwargs": {"packing": True, "max_length": 2048, "dataset_text_field": "text"},
    },
    "openbmb/RLAIF-V-Dataset": {"trainer_kwargs": {"beta": 0.1, "max_prompt_length": 1024}},
}
OF_TRAINERS: dict[str, dict[str, Any]] = {
    "TRL_GRPO": {
        "reward_functions": ["count_letters"], "grpo": {"use_vllm": True, "epsilon": "1e-4", "num_generations": 4},
        "include_performance_metrics": False,
    },
    "VERL_GRPO": {"reward_functions": ["gsm8k"], "verl_config_overrides": {"trainer": {"nnodes": 1}}},
    "TRL_GKD": {"gkd": {"teacher_model_name_or_path": "HuggingFaceTB/SmolLM2-360M-Instruct", "lmbda": 0.5}},
    "TRL_GOLD": {"gold": {"teacher_model_name_or_path": "openai/gpt-oss-120b", "max_completion_length": 512}},
}  # fmt: skip


def adapter(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {
        "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": PROJECTIONS, "q_lora": False,
    }  # fmt: skip
    if "gemma-4" in recipe.model:
        values["lora_exclude_modules"] = [".*vision_tower.*", ".*audio_tower.*"]
    if "gpt-oss" in recipe.model:
        values["lora_target_parameters"] = ["7.mlp.experts.gate_up_proj", "7.mlp.experts.down_proj"]
    if recipe.weights == "qlora":
        values |= {
            "q_lora": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "bfloat16", "lora_init_weights": "DEFAULT",
        }  # fmt: skip
    return values


def division(recipe: Recipe) -> dict[str, Any]:
    if recipe.division.startswith("zero"):
        return {
            "deepspeed": {"enable_deepspeed": True, "zero_stage": f"ZERO_{recipe.division[-1]}", "precision": "BF16"}
        }
    strategy = "HYBRID_SHARD" if recipe.division == "hybrid" else "FULL_SHARD"
    return {
        "fsdp": {
            "enable_fsdp": True, "sharding_strategy": strategy, "forward_prefetch": True,
            "auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 100000,
        }
    }  # fmt: skip


RECIPES = list(recipes())


def test_the_table_has_the_recipes_that_are_shipped() -> None:
    assert len(RECIPES) == 157
    assert len([recipe for recipe in RECIPES if recipe.trainer not in LEFT_OUT]) == 147
    known = {key.split("[")[0] for key in leaves(TrainingConfig())}
    for recipe in RECIPES:
        assert TrainerType[recipe.trainer]
        written = {f"{name}.{key}" for name, section in content(recipe).items() for key in section if name != "data"}
        assert all(any(key.startswith(name) for key in known) for name in written), recipe


def test_all_but_reinforcement_learning_and_distillation_pass_their_check(tmp_path: Path) -> None:
    for recipe in RECIPES:
        file = tmp_path / f"{recipe.number}.yaml"
        file.write_text(yaml.safe_dump(content(recipe)))
        problems: set[str] = set()
        try:
            check_file(str(file))
        except ConfigError as error:
            problems = {problem.key for problem in error.problems}
        if recipe.trainer in LEFT_OUT:
            assert problems == {"training.trainer_type"}, recipe
        else:
            assert problems == set(), recipe


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if recipe.trainer in ("TRL_SFT", "OUMI")][::6]
    + [recipe for recipe in RECIPES if recipe.trainer in ("TRL_DPO", "TRL_KTO")],
    ids=lambda recipe: f"{recipe.number}-{recipe.trainer}-{recipe.weights}-{recipe.model.rpartition('/')[2]}",
)
def test_a_recipe_becomes_a_plan_whose_data_sets_take_their_arguments(recipe: Recipe) -> None:
    sections = content(recipe)
    for split in sections["data"].values():
        for dataset in split["datasets"]:
            if dataset["dataset_name"] in ("text_sft_jsonl", "vision_dpo_jsonl"):
                dataset["dataset_path"] = "chats.jsonl"
    config = TrainingConfig.model_validate(sections)
    plan = make_plan(config, GPU, 8, 8)
    assert recipe.trainer == "OUMI" or arguments(plan)["output_dir"]
    for split in (plan.data.train, plan.data.validation):
        for params in split.datasets:
            dataset_for(params, split.stream)
