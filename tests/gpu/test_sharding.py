# SPDX-License-Identifier: Apache-2.0
"""Models that are divided over two GPUs by the native trainer: the losses of one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.laws.test_ranks import assert_close
from tests.laws.test_sharding import DRIVER
from tests.ranks import free_port, run_ranks
from tests.runs import records, tiny_config, weights

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "gathered": {"sharding_strategy": "SHARD_GRAD_OP", "forward_prefetch": True},
    "offloaded": {"cpu_offload": True},
    "slices": {"state_dict_type": "SHARDED_STATE_DICT"},
    "narrow": {"mixed_precision": "bf16"},
    "whole": {"sharding_strategy": "NO_SHARD"},
}


@pytest.mark.multi_gpu
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("uses_adapter", [False, True])
def test_two_gpus_equal_one(tmp_path: Path, name: str, uses_adapter: bool) -> None:
    config = tiny_config(
        tmp_path, max_steps=6, save_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=4,
        use_peft=uses_adapter,
    )  # fmt: skip
    train(config)
    divided = config.model_dump(mode="json")
    divided["training"] |= {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 2}
    divided["fsdp"] |= {"enable_fsdp": True, **SETTINGS[name]}
    TrainingConfig.model_validate(divided).to_yaml(tmp_path / "two.yaml")
    ranks = run_ranks(2, str(DRIVER), f"{free_port()}:{tmp_path / 'two.yaml'}", folder=DRIVER.parents[2])
    assert [code for code, _ in ranks] == [0, 0], ranks
    is_narrow = name == "narrow"  # bfloat16 keeps three digits
    expected = [step["loss"] for step in records(tmp_path / "out")]
    assert [step["loss"] for step in records(tmp_path / "two")] == pytest.approx(
        expected, rel=2e-2 if is_narrow else 1e-4
    )
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "out"), 2e-2 if is_narrow else 1e-3)
