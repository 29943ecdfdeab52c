# SPDX-License-Identifier: Apache-2.0
"""Arguments in `trainer_kwargs` that mean keys of ours: taken as those keys, unless both say different things."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.configs.loading import keys_of, leaves, to_plain
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.plan.trainer_kwargs import OWN_KEYS, REFUSED, as_run, mapped_arguments

MODEL = ModelFacts(are_available=True, stored_dtype="float32", max_positions=2048, tokenizer_length=1024)
FACTS = Facts("cpu", "CPU", False, 2, 24 << 30, 10**12, num_rows=103, model=MODEL)


def config_of(kwargs: dict[str, Any], trainer: str = "TRL_SFT", model: Any = None, **training: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "model": {"model_name": "some/model", **(model or {})},
            "data": {"train": {"datasets": [{"dataset_name": "a"}]}},
            "training": {"trainer_type": trainer, "trainer_kwargs": kwargs, **training},
        }
    )


@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF", "OUMI", "TRL_DPO"])
@pytest.mark.parametrize(
    ("argument", "value", "key", "expected"),
    [
        ("learning_rate", "1e-4", "training.learning_rate", 1e-4),
        ("optim", "sgd", "training.optimizer", "sgd"),
        ("save_steps", -1, "training.save_steps", -1),
        ("torch_compile", True, "training.compile", True),
        ("log_level", "error", "training.dep_log_level", "error"),
        ("gradient_checkpointing", True, "training.enable_gradient_checkpointing", True),
        ("use_liger_kernel", True, "model.enable_liger_kernel", True),
        ("max_length", 64, "model.model_max_length", 64),
        ("max_seq_length", None, "model.model_max_length", None),
        ("packing", True, "data.train.pack", True),
        ("output_dir", "there", "training.output_dir", "there"),
    ],
)
def test_an_argument_is_taken_as_the_key_that_means_the_same(
    argument: str, value: Any, key: str, expected: Any, trainer: str
) -> None:
    config = config_of({argument: value, "neftune_noise_alpha": 5}, trainer)
    before = to_plain(config)
    run = as_run(config)
    assert leaves(run)[key] == expected
    assert run.training.trainer_kwargs == {"neftune_noise_alpha": 5}
    assert to_plain(config) == before


@pytest.mark.parametrize(
    ("trainer", "argument", "value", "key"),
    [
        ("TRL_GRPO", "use_vllm", True, "training.grpo.use_vllm"),
        ("TRL_GRPO", "max_completion_length", 7, "training.grpo.max_completion_length"),
        ("TRL_GRPO", "model_init_kwargs", {"a": 1}, "training.grpo.model_init_kwargs"),
        ("TRL_GKD", "beta", 0.1, "training.gkd.beta"),
        ("TRL_GOLD", "temperature", 0.6, "training.gold.temperature"),
    ],
)
def test_an_argument_is_taken_as_a_key_of_the_section_of_the_method(
    trainer: str, argument: str, value: Any, key: str
) -> None:
    assert leaves(as_run(config_of({argument: value}, trainer)))[key] == value
    elsewhere = as_run(config_of({argument: value}, "TRL_DPO"))
    assert elsewhere.training.trainer_kwargs == {argument: value}


def test_the_plan_goes_by_what_is_taken_and_states_it() -> None:
    kwargs = {"learning_rate": 1e-4, "max_length": 64, "packing": False, "per_device_train_batch_size": 2}
    plan = make_plan(config_of(kwargs), FACTS)
    assert (plan.optimizer.learning_rate, plan.model.max_length, plan.steps.micro_batch_rows) == (1e-4, 64, 2)
    assert plan.notes[:2] == (
        "training.learning_rate: 0.0001, as training.trainer_kwargs.learning_rate says",
        "model.model_max_length: 64, as training.trainer_kwargs.max_length says",
    )
    assert plan.config.training.trainer_kwargs == {}


def test_a_key_that_says_the_same_is_no_contradiction() -> None:
    config = config_of({"learning_rate": "1e-4", "max_length": 64}, model={"model_max_length": 64}, learning_rate=1e-4)
    assert not refusals(config)
    assert as_run(config).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("kwargs", "key", "words"),
    [
        ({"learning_rate": 1e-4}, "learning_rate", "got 0.0001, but training.learning_rate is 0.001: leave one of"),
        ({"max_length": 8, "max_seq_length": 9}, "max_seq_length", "but training.trainer_kwargs.max_length is 8"),
        ({"seed": "x"}, "seed", "got 'x', must be a whole number"),
        ({"num_train_epochs": 0.5}, "num_train_epochs", "got 0.5, must be a whole number"),
        ({"optim": "adamw_trch"}, "optim", "unknown optimizer 'adamw_trch', did you mean 'adamw_torch'?"),
        ({"eval_strategy": "steps"}, "eval_strategy", "data.validation.datasets is empty"),
        ({"bf16": True}, "bf16", "the adapter decides it: set training.mixed_precision_dtype"),
        ({"group_by_length": True}, "group_by_length", "the seed decides the order of the rows"),
        ({"use_peft": True}, "use_peft", "is a key of 'training' itself"),
    ],
)
def test_what_contradicts_the_plan_is_reported_where_it_is_written(
    kwargs: dict[str, Any], key: str, words: str
) -> None:
    config = config_of(kwargs, learning_rate=1e-3)
    (problem,) = refusals(config)
    assert problem.key == f"training.trainer_kwargs.{key}"
    assert words in problem.message


def test_a_value_that_is_set_stays_where_an_argument_contradicts_it() -> None:
    config = config_of({"learning_rate": 1e-4}, learning_rate=1e-3)
    assert as_run(config).training.learning_rate == 1e-3


def test_every_key_that_an_argument_is_taken_as_exists() -> None:
    assert set(OWN_KEYS.values()) <= {key for key, _ in keys_of(TrainingConfig)}
    assert not OWN_KEYS.keys() & REFUSED.keys()


def test_a_config_without_such_arguments_is_the_one_that_runs() -> None:
    config = config_of({"neftune_noise_alpha": 5})
    assert as_run(config) is config
    assert mapped_arguments(config) == []
