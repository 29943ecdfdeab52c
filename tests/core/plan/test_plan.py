# SPDX-License-Identifier: Apache-2.0
"""A plan is a pure function of config and facts, with every number decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oumi.core.configs import TrainerType, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.render import plan_text

MODEL = ModelFacts(are_available=True, stored_dtype="bfloat16", max_positions=2048, tokenizer_length=1024)
CPU = Facts("cpu", "CPU", False, 2, 24 << 30, 10**12, num_rows=103, model=MODEL)
BF16_CPU = Facts("cpu", "CPU", True, 2, 24 << 30, 10**12, num_rows=103, model=MODEL)
GPU = Facts("cuda", "GPU", True, 8, 80 << 30, 10**12, num_rows=103, model=MODEL)


def plan(facts: Facts = CPU, world_size: int = 1, model: dict[str, Any] | None = None, **training: Any) -> Plan:
    config = TrainingConfig.model_validate(
        {
            "model": {"model_name": "some/model", **(model or {})},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {"trainer_type": "OUMI", "output_dir": "out", **training},
        }
    )
    return make_plan(config, facts, world_size)


def test_the_same_config_and_facts_give_the_same_plan() -> None:
    assert plan() == plan()


@pytest.mark.parametrize(
    ("training", "world_size", "per_epoch", "total"),
    [
        ({"per_device_train_batch_size": 8, "num_train_epochs": 1}, 1, 13, 13),
        ({"per_device_train_batch_size": 8, "num_train_epochs": 3}, 1, 13, 39),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 1}, 1, 13, 13),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 1}, 2, 7, 7),
        ({"per_device_train_batch_size": 8, "max_steps": 5}, 1, 13, 5),
        ({"per_device_train_batch_size": 8, "max_steps": 50}, 1, 13, 50),
        ({"per_device_train_batch_size": 200, "num_train_epochs": 2}, 1, 1, 2),
    ],
)
def test_steps_follow_from_rows_and_sizes(training: Any, world_size: int, per_epoch: int, total: int) -> None:
    steps = plan(world_size=world_size, **training).steps
    assert (steps.per_epoch, steps.total) == (per_epoch, total)


def test_steps_are_open_until_the_rows_are_counted() -> None:
    uncounted = plan(Facts("cpu", "CPU", False, 2, 1, 1), per_device_train_batch_size=8, num_train_epochs=2)
    assert uncounted.steps.total is None
    assert uncounted.with_num_rows(17).num_steps == 6
    assert "counted when read" in plan_text(uncounted)


@pytest.mark.parametrize(
    ("facts", "dtype", "mixed", "weights", "autocast"),
    [
        (CPU, "auto", "NONE", "float32", None),
        (CPU, "bfloat16", "NONE", "float32", None),
        (CPU, "float32", "BF16", "float32", None),
        (CPU, "float64", "NONE", "float64", None),
        (BF16_CPU, "auto", "NONE", "bfloat16", None),
        (GPU, "auto", "NONE", "bfloat16", None),
        (GPU, "float32", "BF16", "float32", "bfloat16"),
        (GPU, "float32", "FP16", "float32", "float16"),
        (GPU, "f32", "NONE", "float32", None),
        (GPU, "half", "NONE", "float16", None),
    ],
)
def test_precision_is_what_the_device_can_do_and_says_why(
    facts: Facts, dtype: str, mixed: str, weights: str, autocast: str | None
) -> None:
    result = plan(facts, model={"torch_dtype_str": dtype}, mixed_precision_dtype=mixed)
    assert (result.model.dtype, result.precision.autocast) == (weights, autocast)
    assert result.precision.reason
    notes = [note for note in result.notes if note.startswith("precision")]
    is_unsupported = facts is CPU and (dtype == "bfloat16" or mixed == "BF16")
    assert bool(notes) == (is_unsupported or weights in ("bfloat16", "float16"))


def test_random_weights_are_drawn_in_float32() -> None:
    assert plan(GPU, model={"load_pretrained_weights": False}).model.dtype == "float32"


@pytest.mark.parametrize(
    ("model", "length"),
    [
        ({}, 1024),
        ({"model_max_length": 64}, 64),
        ({"model_max_length": 4096}, 4096),
        ({"model_kwargs": {"max_position_embeddings": 512}}, 512),
    ],
)
def test_rows_are_cut_at_the_length_that_is_named_or_that_model_and_tokenizer_take(model: Any, length: int) -> None:
    result = plan(model=model)
    assert result.model.max_length == length
    assert any("beyond the 2,048 positions" in note for note in result.notes) == (length > 2048)


def test_the_version_of_a_model_is_pinned_for_model_and_tokenizer() -> None:
    facts = Facts("cpu", "CPU", False, 2, 1, 1, model=ModelFacts(commit="c0ffee"))
    result = plan(facts)
    assert (result.model.revision, result.model.tokenizer_revision) == ("c0ffee", "c0ffee")
    other = plan(facts, model={"tokenizer_name": "other/tokenizer"})
    assert (other.model.revision, other.model.tokenizer_revision) == ("c0ffee", None)


def test_a_directory_with_an_adapter_is_the_adapter_on_its_base() -> None:
    result = plan(Facts("cpu", "CPU", False, 2, 1, 1, model=ModelFacts(adapter_of="the/base")))
    assert (result.model.name, result.model.adapter, result.model.tokenizer_name) == (
        "the/base",
        "some/model",
        "some/model",
    )


def test_the_version_of_an_adapter_is_not_that_of_its_base() -> None:
    facts = Facts("cpu", "CPU", False, 2, 1, 1, model=ModelFacts(adapter_of="the/base"))
    result = plan(facts, model={"model_revision": "v2"}).model
    assert (result.revision, result.adapter_revision, result.tokenizer_revision) == (None, "v2", "v2")


def test_weights_of_float16_are_refused_unless_they_stand_still() -> None:
    config = TrainingConfig()
    config.model.torch_dtype_str = "half"
    assert any("gradients of float16 weights vanish" in problem.message for problem in refusals(config))
    config.training.use_peft = True
    assert not any("float16" in problem.message for problem in refusals(config))


def test_a_plan_states_what_no_reader_would_expect() -> None:
    notes = plan(warmup_ratio=0.1, warmup_steps=3, save_steps=5, save_epoch=True, max_steps=3, num_train_epochs=9).notes
    for key in ("warmup_steps decides", "save_steps decides", "max_steps decides"):
        assert any(key in note for note in notes), key


def test_the_notes_of_a_plan_do_not_end_with_a_trainer_that_trains_no_prompts() -> None:
    notes = plan(trainer_type="TRL_GKD", max_steps=3, num_train_epochs=9).notes
    assert any("max_steps decides" in note for note in notes)


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
@pytest.mark.parametrize("target", [None, "FINAL_ASSISTANT_TURN"])
def test_a_plan_says_when_prompts_are_trained(trainer: str, target: str | None) -> None:
    config = TrainingConfig.model_validate(
        {
            "data": {"train": {"datasets": [{"dataset_name": "a"}], "train_target": target}},
            "training": {"trainer_type": trainer},
        }
    )
    result = make_plan(config, CPU)
    assert (result.data.train_on == "all") == (target is None)
    assert any("prompts included" in note for note in result.notes) == (target is None)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train_target": "FINAL_ASSISTANT_TURN"}, "as data.train.train_target"),
        ({"pad_to_multiple_of": 0}, "must be a whole number, 1 or more"),
        ({"response_template": 3}, "must be text"),
        ({"pad_to_multiple": 8}, "did you mean 'pad_to_multiple_of'?"),
    ],
)
def test_an_argument_of_the_collator_that_cannot_be_is_refused(kwargs: dict[str, Any], message: str) -> None:
    config = TrainingConfig()
    config.data.train.collator_kwargs = kwargs
    problems = [problem for problem in refusals(config) if "collator_kwargs" in problem.key]
    assert len(problems) == 1
    assert message in problems[0].message


def test_an_argument_of_gradient_checkpointing_that_is_none_is_refused() -> None:
    config = TrainingConfig()
    config.training.gradient_checkpointing_kwargs = {"use_reentrent": True}
    (problem,) = (problem for problem in refusals(config) if "checkpointing" in problem.key)
    assert "did you mean 'use_reentrant'?" in problem.message


@pytest.mark.parametrize(
    ("value", "trainer", "message"),
    [
        (0, "OUMI", "got 0, must be a number of layers >= 1, or auto"),
        (True, "OUMI", "got True"),
        ("most", "OUMI", "got 'most'"),
        (2, "TRL_SFT", "TRL_SFT recomputes all layers or none; only trainer OUMI reads it"),
        (2, "OUMI", ""),
        ("auto", "OUMI", ""),
    ],
)
def test_which_layers_compute_again_is_checked(value: Any, trainer: str, message: str) -> None:
    config = TrainingConfig()
    config.training.trainer_type = TrainerType[trainer]
    config.training.gradient_checkpointing_kwargs = {"recompute_num_layers": value}
    problems = [problem.message for problem in refusals(config) if "checkpointing" in problem.key]
    assert len(problems) == bool(message)
    assert message in "".join(problems)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_liger_is_for_a_gpu(device: str) -> None:
    config = TrainingConfig()
    config.model.enable_liger_kernel = True
    result = make_plan(config, replace(CPU, device=device))
    assert result.speed.liger == (device == "cuda")
    assert any("enable_liger_kernel: its kernels are for a GPU" in note for note in result.notes) == (device == "cpu")


@pytest.mark.parametrize(("device", "compile"), [("cuda", False), ("cuda", True), ("cpu", False)])
def test_a_plan_says_what_would_fuse_layers_on_a_gpu(device: str, compile: bool) -> None:
    result = plan(replace(CPU, device=device), trainer_type="OUMI", compile=compile)
    assert any("layers are not fused" in note for note in result.notes) == (device == "cuda" and not compile)


def test_reentrant_checkpointing_and_compiled_layers_are_refused_where_both_are_on() -> None:
    config = TrainingConfig()
    config.training.trainer_type = TrainerType.OUMI
    config.training.compile = True
    config.training.gradient_checkpointing_kwargs = {"use_reentrant": True}
    for is_on in (True, False):
        config.training.enable_gradient_checkpointing = is_on
        assert any("use_reentrant" in problem.key for problem in refusals(config)) == is_on


@pytest.mark.parametrize(
    ("device", "training", "is_noted"),
    [
        ("cuda", {"save_steps": 5}, True),
        ("cuda", {"save_steps": 5, "use_deterministic": True}, False),
        ("cuda", {"save_steps": 0}, False),
        ("cpu", {"save_steps": 5}, False),
    ],
)
def test_a_plan_says_when_a_resumed_run_is_equal_but_for_rounding(
    device: str, training: dict[str, Any], is_noted: bool
) -> None:
    result = plan(replace(CPU, device=device), **training)
    assert any(note.startswith("resume: a GPU adds") for note in result.notes) == is_noted


H100 = replace(CPU, device="cuda", has_bf16=True, has_fp8=True)
FP8 = {"trainer_type": "OUMI", "compile": True, "fp8_recipe": "tensorwise", "mixed_precision_dtype": "BF16"}


def test_products_in_8_bits_are_planned_where_the_device_has_them() -> None:
    result = plan(replace(H100, model=ModelFacts(num_parameters=8_000_000_000)), **FP8)
    assert result.precision.fp8 == "tensorwise"
    notes = "\n".join(result.notes)
    assert "fp8: all tokens of a micro-batch share a scale, so its size affects the gradients" in notes
    assert "fp8: the logged share of the peak is that of bfloat16 products" in notes
    assert "below about 3B" not in notes
    elsewhere = plan(CPU, **FP8)
    assert elsewhere.precision.fp8 is None
    assert any("fp8_recipe" in note and "does not multiply 8-bit floats" in note for note in elsewhere.notes)


def test_products_in_8_bits_gain_little_in_small_models_which_is_reported() -> None:
    result = plan(
        replace(H100, model=ModelFacts(num_parameters=1_000_000_000)), **{**FP8, "fp8_recipe": "rowwise_with_gw_hp"}
    )
    assert any("below about 3B" in note for note in result.notes)
    assert not any("share" in note and "scale" in note for note in result.notes)


@pytest.mark.parametrize(
    ("recipe", "name", "shape", "gains"),
    [
        ("rowwise", "model.layers.0.mlp.up_proj.weight", (14336, 4096), True),
        ("rowwise", "model.layers.0.mlp.up_proj.weight", (1536, 576), False),
        ("rowwise", "lm_head.weight", (128256, 4096), False),
        ("rowwise", "model.layers.0.mlp.up_proj.weight", (14337, 4096), False),
        ("tensorwise", "model.layers.0.mlp.up_proj.weight", (2048, 1024), True),
    ],
)
def test_products_in_8_bits_want_a_layer_that_gains(recipe: str, name: str, shape: Any, gains: bool) -> None:
    others = {"model.embed_tokens.weight": (128256, 4096), "model.layers.0.self_attn.k_proj.weight": (128, 4096)}
    facts = replace(H100, model=ModelFacts(matrices={name: shape, **others}))
    if gains:
        assert plan(facts, **{**FP8, "fp8_recipe": recipe}).precision.fp8 == recipe
    else:
        with pytest.raises(ConfigError, match="no layer of this model is large enough"):
            plan(facts, **{**FP8, "fp8_recipe": recipe})


def test_products_in_8_bits_beside_float32_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs bfloat16 for the rest of the computation, got float32"):
        plan(replace(H100, model=ModelFacts(stored_dtype="float32")), **{**FP8, "mixed_precision_dtype": "NONE"})


@pytest.mark.parametrize(
    ("trainer", "compile", "message"),
    [
        ("OUMI", True, ""),
        ("OUMI", False, "needs training.compile: true"),
        ("TRL_SFT", True, "not supported by TRL_SFT"),
    ],
)
def test_products_in_8_bits_want_our_trainer_and_compiled_layers(trainer: str, compile: bool, message: str) -> None:
    config = TrainingConfig()
    config.training.trainer_type = TrainerType[trainer]
    config.training.compile = compile
    config.training.fp8_recipe = "rowwise"
    problems = [problem.message for problem in refusals(config) if problem.key == "training.fp8_recipe"]
    assert len(problems) == bool(message)
    assert message in "".join(problems)


def test_what_is_never_due_is_reported() -> None:
    notes = plan(max_steps=10, save_steps=11).notes
    assert "training.save_steps: 11 is beyond the run's 10 steps, so it is never due" in notes
    assert not any("never due" in note for note in plan(max_steps=10, save_steps=10).notes)


@pytest.mark.parametrize("save_steps", [0, -1])
def test_no_steps_between_checkpoints_saves_none(save_steps: int) -> None:
    result = plan(save_steps=save_steps, save_epoch=True)
    assert (result.checkpoints.every_steps, result.checkpoints.every_epoch) == (None, True)


def test_code_that_comes_with_rows_is_trusted_in_vain() -> None:
    config = plan().config
    config.data.train.datasets[0].trust_remote_code = True
    assert not refusals(config)
    expected = "not read: data.train.datasets[0].trust_remote_code: no data set runs code of the Hub"
    assert any(note.startswith(expected) for note in make_plan(config, CPU).notes)
