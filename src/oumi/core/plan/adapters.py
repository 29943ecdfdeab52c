# SPDX-License-Identifier: Apache-2.0
"""Plans an adapter and the quantized weights below it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from oumi.core.configs import LoraWeightInitialization, PeftSaveMode, TrainingConfig
from oumi.core.configs.fsdp import ShardingStrategy
from oumi.core.errors import ConfigError
from oumi.core.plan.disk import EMBEDDINGS, size_of_files, trained_matrices
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.lora import LoraPlan, QuantizationPlan
from oumi.core.plan.parts import ModelPlan
from oumi.core.plan.sharding import equivalent_fsdp

_DEQUANTIZED = "mxfp4"
"""Method whose weights transformers makes whole when it loads them."""
_OWN = "bitsandbytes"


def plan_lora(config: TrainingConfig) -> LoraPlan:
    """Returns the adapter as arguments of PEFT."""
    peft = config.peft
    return LoraPlan(peft.lora_settings(), peft.peft_save_mode.name, tuple(config.model.freeze_layers))


def plan_quantization(config: TrainingConfig, facts: Facts, dtype: str) -> QuantizationPlan | None:
    """Returns how the weights below the adapter are quantized, None if they keep the dtype of the model.

    Raises:
        ConfigError: bitsandbytes is not installed, or the files of the model are quantized in another way.
    """
    peft, stored = config.peft, facts.model.quantization
    is_wanted = config.training.use_peft and peft.q_lora
    if stored is not None:
        _check_stored(config, facts.model)
    if not is_wanted and stored != _OWN:
        return None
    if "bitsandbytes" in facts.missing:
        key = "peft.q_lora" if is_wanted else "model.model_name"
        raise ConfigError(f"{key}: weights in few bits need the package bitsandbytes: pip install 'oumi[narrow]'")
    if stored == _OWN:
        return QuantizationPlan(0, "as stored", False, "as stored", "as stored", ())
    is_int8 = peft.q_lora_bits == 8
    computed = peft.bnb_4bit_compute_dtype
    if (facts.device == "cpu" and not facts.has_bf16) or dtype == "float64":  # emulated, many times slower
        computed = "float32"
    return QuantizationPlan(
        bits=peft.q_lora_bits,
        number_format="int8" if is_int8 else peft.bnb_4bit_quant_type,
        nested=peft.use_bnb_nested_quant and not is_int8,
        storage="int8" if is_int8 else peft.bnb_4bit_quant_storage,
        compute_dtype=dtype if is_int8 else computed,
        skipped=tuple(peft.llm_int8_skip_modules or ()),
    )


def adapter_notes(config: TrainingConfig, plan: ModelPlan, lora: LoraPlan | None, facts: ModelFacts) -> Iterator[str]:
    """Yields what is trained further, and which share of the weights an adapter trains and quantization rounds."""
    model = config.model
    if plan.adapter is None and model.adapter_trainable is not None:
        yield "not read: model.adapter_trainable: there is no model.adapter_model"
    if plan.adapter is not None and model.adapter_trainable is None:
        yield "the adapter of the model is trained further; other versions of Oumi load it frozen, and train nothing"
    if model.text_only and facts.are_available and not facts.sees_images:
        yield "not read: model.text_only: it is a text model"
    matrices, num_weights = facts.matrices, facts.num_parameters
    if lora is not None and lora.begins_with_inputs and plan.adapter is None:
        rank = lora.settings["r"]
        yield f"EVA: a pass over the first rows sets the rank of each layer, {rank} on average, {2 * rank} at most"
    if lora is None or not num_weights or not matrices:
        return
    linear = {
        name: shape for name, shape in matrices.items() if not any(part in name for part in (*EMBEDDINGS, ".experts."))
    }
    if plan.quantization is not None:
        share = sum(math.prod(shape) for shape in linear.values()) / num_weights
        yield f"quantized: {share:.0%} of the weights; embeddings, head, norms and experts keep {plan.dtype}"
    saved = size_of_files(facts, plan.dtype, lora)
    has_experts = any(".experts." in name for name in matrices)  # which transformers stacks, if the family says so
    if saved is not None and not has_experts:
        adapted = sum(math.prod(shape) for shape in trained_matrices(facts, lora).values()) / num_weights
        trained = saved.trained_bytes / 4 / num_weights
        about = "about " if lora.begins_with_inputs else ""
        yield (
            f"adapter: layers with {adapted:.0%} of the weights are adapted, by {about}{trained:.2%} as many trained "
            "weights"
        )


def _check_stored(config: TrainingConfig, facts: ModelFacts) -> None:
    """Raises ConfigError if the files of the model are quantized in a way that cannot be trained."""
    stored, name = facts.quantization, config.model.model_name
    if stored == _OWN and not config.training.use_peft and config.model.adapter_model is None:
        raise ConfigError(
            f"model.model_name: the weights of {name} are quantized by bitsandbytes, so only an adapter can be "
            "trained; set training.use_peft: true"
        )
    is_exported = config.training.use_peft and config.peft.peft_save_mode != PeftSaveMode.ADAPTER_ONLY
    if stored == _OWN and is_exported:
        raise ConfigError(
            f"peft.peft_save_mode: {name} has no weights in full that an adapter could be merged into; set ADAPTER_ONLY"
        )
    if stored == _DEQUANTIZED and config.training.use_peft and config.peft.q_lora:
        raise ConfigError(
            f"peft.q_lora: the experts of {name} are stored in MXFP4, which is made whole for training, and "
            "bitsandbytes quantizes no experts; leave it out"
        )
    if stored not in (_OWN, _DEQUANTIZED):
        raise ConfigError(
            f"model.model_name: the weights of {name} are quantized by {stored}, which cannot be trained here; name "
            "the checkpoint in full precision, and set peft.q_lora: true to quantize it while it is loaded"
        )


def adapter_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields (key, message) of what cannot be adapted, quantized or saved as the config says."""
    training, peft, model = config.training, config.peft, config.model
    if model.adapter_trainable is False and (training.use_peft or model.adapter_model is not None):
        yield (
            "model.adapter_trainable",
            "false would leave nothing to train, and a second adapter on a frozen one would fit neither base; merge "
            "the first (oumi merge ADAPTER -o DIRECTORY), and name the result in model.model_name",
        )
    if not training.use_peft:
        return
    if not model.load_pretrained_weights and peft.peft_save_mode == PeftSaveMode.ADAPTER_ONLY:
        yield (
            "peft.peft_save_mode",
            "ADAPTER_ONLY would lose the random base weights (model.load_pretrained_weights is false); "
            "set MERGED or ADAPTER_AND_BASE_MODEL",
        )
    if peft.lora_bias != "none" and peft.peft_save_mode == PeftSaveMode.ADAPTER_AND_BASE_MODEL:
        yield (
            "peft.peft_save_mode",
            f"ADAPTER_AND_BASE_MODEL saves the unchanged base, and peft.lora_bias: {peft.lora_bias} trains its "
            "biases; set MERGED or ADAPTER_ONLY",
        )
    if peft.lora_trainable_token_indices and _divides_weights(config):
        yield (
            "peft.lora_trainable_token_indices",
            "fsdp and deepspeed divide the embedding over the ranks, where single rows of it cannot be trained; name "
            "it in peft.lora_modules_to_save instead, or leave the weights whole",
        )
    if peft.q_lora:
        yield from _quantization_problems(config)
    yield from _initialization_problems(config)


def _divides_weights(config: TrainingConfig) -> bool:
    """Returns True if no rank has whole weights; ZeRO 2 leaves them whole under other trainers than ours."""
    fsdp = equivalent_fsdp(config) if config.training.trainer_type.spec.is_native else config.fsdp
    return config.deepspeed.is_zero3_enabled() or (
        fsdp.enable_fsdp and fsdp.sharding_strategy != ShardingStrategy.NO_SHARD
    )


def _initialization_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    peft, key = config.peft, "peft.lora_init_weights"
    name = peft.initialization
    if name == LoraWeightInitialization.PISSA_NITER.value:
        yield key, "PISSA_NITER needs the number of iterations, such as pissa_niter_16"
    elif name == "loftq" and not peft.q_lora:
        yield key, "LOFTQ begins with what quantization rounds off: set peft.q_lora: true"
    elif name == "orthogonal" and peft.lora_r % 2:
        yield "peft.lora_r", f"got {peft.lora_r}, must be even for peft.lora_init_weights: ORTHOGONAL"
    if peft.keeps_base and name != "eva":
        return
    fsdp = equivalent_fsdp(config)
    if fsdp.enable_fsdp and fsdp.sharding_strategy != ShardingStrategy.NO_SHARD:
        yield key, f"{name} needs whole weights, and fsdp or deepspeed divides them over the ranks"
    if peft.lora_target_parameters:
        yield "peft.lora_target_parameters", f"not with peft.lora_init_weights: {name}, which is for linear layers"
    if name == "eva":
        return
    if peft.q_lora and name != "loftq":
        yield key, f"{name} takes a part out of the base weights, which peft.q_lora rounds; LOFTQ is for them"
    if peft.lora_use_dora:
        yield (
            "peft.lora_use_dora",
            f"not with peft.lora_init_weights: {name}, whose update would not fit the base weights",
        )
    if not config.model.load_pretrained_weights:
        yield key, f"{name} takes the directions of trained weights, and those of this run are random"


def _quantization_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training = config.training
    if training.fp8_recipe is not None:
        yield "training.fp8_recipe", "the weights below a QLoRA adapter are quantized already; leave one of them out"
    fsdp, peft = equivalent_fsdp(config), config.peft
    if not fsdp.enable_fsdp or fsdp.sharding_strategy == ShardingStrategy.NO_SHARD:
        return
    if peft.q_lora_bits == 8:
        yield "peft.q_lora_bits", "weights of 8 bits cannot be divided over ranks (fsdp, deepspeed); those of 4 can"
    elif training.trainer_type.spec.is_native:
        if fsdp.cpu_offload:
            yield "fsdp.cpu_offload", "the scales of quantized weights stay on the GPU; leave it out"
    elif config.deepspeed.enable_deepspeed and config.deepspeed.is_zero3_enabled():
        yield "deepspeed.zero_stage", "ZERO_3 cannot divide quantized weights; use ZERO_2, or trainer OUMI"
    elif not config.deepspeed.enable_deepspeed and peft.bnb_4bit_quant_storage in ("uint8", "int8"):
        yield (
            "peft.bnb_4bit_quant_storage",
            f"{peft.bnb_4bit_quant_storage}: Accelerate divides no tensors of integers; set it to the dtype of the "
            "model, such as bfloat16, or use trainer OUMI",
        )
