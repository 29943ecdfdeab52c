# SPDX-License-Identifier: Apache-2.0
"""The recipes of adapters on the embedded model learn, and export a model that is proven."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from oumi.core.configs import TrainingConfig
from oumi.core.recipes import resolve_config
from oumi.core.train import train
from tests.runs import losses


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("quickstart-lora", marks=pytest.mark.slow),
        pytest.param("quickstart-qlora", marks=pytest.mark.narrow),
    ],
)
def test_an_adapter_on_the_embedded_model_learns(tmp_path: Path, name: str) -> None:
    config = TrainingConfig.from_yaml(str(resolve_config(name)))
    config.training.output_dir = str(tmp_path / "out")
    train(config)
    curve = losses(tmp_path / "out")
    assert sum(curve[-5:]) / 5 < 0.6 * curve[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type
