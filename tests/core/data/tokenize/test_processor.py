# SPDX-License-Identifier: Apache-2.0
"""The processor of a model that sees images: loaded, and saved again for others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from oumi.core.data.tokenize.processor import load_processor, save_processor
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.plan.parts import ModelPlan
from oumi.core.plan.plan import make_plan
from tests.runs import tiny_config
from tests.tiny import save_tiny_model
from tests.tiny_vision import image, save_tiny_qwen2_vl


def plan_of(folder: Path, model: Path) -> ModelPlan:
    config = tiny_config(folder)
    config.model.model_name = str(model)
    return make_plan(config, gather_facts(config)).model


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="with torchvision the part for videos is there")
def test_a_processor_stands_without_its_part_for_videos_and_keeps_its_settings(tmp_path: Path) -> None:
    model = save_tiny_qwen2_vl(tmp_path / "qwen")
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3}
    (model / "video_preprocessor_config.json").write_text(json.dumps(videos))
    plan, tokenizer = plan_of(tmp_path, model), AutoTokenizer.from_pretrained(model)
    assert plan.sees_images
    first = load_processor(plan, tokenizer)
    (tmp_path / "saved").mkdir()
    shutil.copy(model / "config.json", tmp_path / "saved")
    save_processor(first, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "video_preprocessor_config.json").read_text()) == videos
    again = load_processor(replace(plan, name=str(tmp_path / "saved")), tokenizer)
    mark, images = first.image_token, [[image(3)]]
    for name, value in first(text=[mark], images=images, return_tensors="pt").items():
        assert value.equal(again(text=[mark], images=images, return_tensors="pt")[name])


def test_a_model_that_brings_no_processor_is_reported(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "text")
    with pytest.raises(ConfigError, match="has no processor for images"):
        load_processor(plan_of(tmp_path, model), AutoTokenizer.from_pretrained(model))
