# SPDX-License-Identifier: Apache-2.0
"""What is left once the model of a run is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oumi.core.data.tokenize.preprocessor import load_preprocessor
from oumi.core.distributed.world import World
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.plan.accelerate import AccelerateSettings
from oumi.core.plan.plan import make_plan
from oumi.core.trainers.export import Exporter
from tests.runs import tiny_config


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps of memory as Linux shows them")
def test_the_file_that_makes_a_divided_model_whole_takes_no_space_afterwards(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    plan = replace(make_plan(config, gather_facts(config)), accelerate=AccelerateSettings(fsdp={}))
    plan.output_dir.mkdir()
    exporter = Exporter(plan, build_model(plan, torch.device("cpu")), load_preprocessor(plan.model))
    with World.start() as world:
        for folder in ("first", "second"):
            with exporter.gathered(world):
                assert "whole-weights" in Path("/proc/self/maps").read_text()
                exporter.write(tmp_path / folder)
            # The disk is free only once a deleted file is not mapped any more.
            assert "whole-weights" not in Path("/proc/self/maps").read_text()
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "first", "second")]
    assert files[0] == files[1] == files[2]
