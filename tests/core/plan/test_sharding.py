# SPDX-License-Identifier: Apache-2.0
"""Keys of `fsdp` that the trainer OUMI does not read, or reads in another way, are named in the plan."""

from __future__ import annotations

from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.plan.adapters import adapter_problems
from oumi.core.plan.sharding import plan_sharding, sharding_notes


def notes(fsdp: dict[str, Any], is_full: bool = True) -> list[str]:
    """Returns the notes on a run of two ranks of one machine."""
    config = TrainingConfig.model_validate(
        {"model": {"model_name": "m"}, "training": {"trainer_type": "OUMI"}, "fsdp": {"enable_fsdp": True, **fsdp}}
    )
    plan = plan_sharding(config, 2, 2, "float32", True, is_full)
    return list(sharding_notes(config, plan, 2, "cuda"))


BY_BLOCK = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
BY_SIZE = {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 5}


@pytest.mark.parametrize(
    ("fsdp", "key"),
    [
        ({**BY_BLOCK, "min_num_params": 5}, "not read: fsdp.min_num_params"),
        ({**BY_SIZE, "transformer_layer_cls": "LlamaDecoderLayer"}, "not read: fsdp.transformer_layer_cls"),
        ({**BY_BLOCK, "state_dict_type": "LOCAL_STATE_DICT"}, "fsdp.state_dict_type: LOCAL_STATE_DICT"),
        ({**BY_BLOCK, "use_orig_params": False}, "not read: fsdp.use_orig_params"),
        ({**BY_BLOCK, "backward_prefetch": "BACKWARD_POST"}, "fsdp.backward_prefetch"),
        ({**BY_BLOCK, "sharding_strategy": "HYBRID_SHARD"}, "fsdp.sharding_strategy"),
    ],
)
def test_a_key_that_means_something_else_is_named(fsdp: dict[str, Any], key: str) -> None:
    (note,) = notes(fsdp)
    assert note.startswith(key)


@pytest.mark.parametrize("fsdp", [BY_BLOCK, BY_SIZE, {**BY_BLOCK, "transformer_layer_cls": "LlamaDecoderLayer"}])
def test_keys_that_mean_what_they_say_are_not_named(fsdp: dict[str, Any]) -> None:
    assert notes(fsdp) == []


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "LOCAL_STATE_DICT"])
def test_an_adapter_is_saved_as_a_whole(kind: str) -> None:
    (note,) = notes({**BY_BLOCK, "state_dict_type": kind}, is_full=False)
    assert note.startswith(f"not read: fsdp.state_dict_type: {kind}")


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
@pytest.mark.parametrize(
    ("sections", "is_refused"),
    [
        ({"fsdp": {"enable_fsdp": True}}, True),
        ({"fsdp": {"enable_fsdp": True, "sharding_strategy": "NO_SHARD"}}, False),
        ({"deepspeed": {"enable_deepspeed": True, "zero_stage": "ZERO_3"}}, True),
        ({}, False),
    ],
)
def test_single_rows_of_a_divided_embedding_are_refused(trainer: str, sections: Any, is_refused: bool) -> None:
    training = {"trainer_type": trainer, "use_peft": True}
    config = TrainingConfig.model_validate(
        {"model": {"model_name": "m"}, "training": training, "peft": {"lora_trainable_token_indices": [3]}, **sections}
    )
    keys = [key for key, _ in adapter_problems(config)]
    assert ("peft.lora_trainable_token_indices" in keys) == is_refused
