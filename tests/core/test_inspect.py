# SPDX-License-Identifier: Apache-2.0
"""The facts in the files of a model, before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.plan import make_plan
from tests.runs import tiny_config
from tests.tiny import tiny_llama


def facts_of(folder: Path, **model: object) -> ModelFacts:
    config = tiny_config(folder)
    for name, value in model.items():
        setattr(config.model, name, value)
    return gather_facts(config).model


def test_size_dtype_and_lengths_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    assert facts.num_parameters == tiny_llama().num_parameters()
    assert (facts.stored_dtype, facts.max_positions, facts.tokenizer_length) == ("float32", 512, 512)
    assert facts.matrices["model.layers.0.self_attn.k_proj.weight"] == (32, 64)
    assert facts.commit is None


def test_the_dtype_is_that_of_the_config_else_that_of_the_weights(tmp_path: Path) -> None:
    tiny_llama().to("cpu").bfloat16().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    assert facts_of(tmp_path).stored_dtype == "bfloat16"
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}))
    assert facts_of(tmp_path).stored_dtype == "bfloat16"
    path.write_text(json.dumps({**config, "dtype": "float16"}))
    assert facts_of(tmp_path).stored_dtype == "float16"


def test_a_tokenizer_without_a_length_has_none(tmp_path: Path) -> None:
    tiny_config(tmp_path)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**30}))
    assert facts_of(tmp_path).tokenizer_length is None


def test_weights_that_are_not_loaded_are_not_counted(tmp_path: Path) -> None:
    assert facts_of(tmp_path, load_pretrained_weights=False).num_parameters is None


@pytest.mark.parametrize(
    ("settings", "mixers"),
    [
        ({"layer_types": ["conv", "full_attention", "conv"]}, {"conv": 2}),
        ({"text_config": {"layer_types": ["linear_attention", "full_attention"]}}, {"linear_attention": 1}),
        ({"layers_block_type": ["mamba", "attention", "mlp"]}, {"mamba": 1}),
        ({"num_hidden_layers": 3, "mamba_d_ssm": 128}, {"state_space": 3}),
        ({"layer_types": ["sliding_attention", "full_attention"]}, {}),
    ],
)
def test_the_mixers_of_hybrid_models_are_known(
    tmp_path: Path, settings: dict[str, object], mixers: dict[str, int]
) -> None:
    config = tiny_config(tmp_path)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    facts = gather_facts(config)
    assert facts.model.mixers == mixers
    notes = [note for note in make_plan(config, facts).notes if note.startswith("flat batches; in the mixers of")]
    assert len(notes) == bool(mixers)
    assert all(f"{count} {kind}" in note for note in notes for kind, count in mixers.items())


def test_a_model_that_is_neither_here_nor_in_the_cache_is_unknown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert facts_of(tmp_path, model_name="nobody/nothing") == ModelFacts()


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        facts_of(tmp_path, model_name=str(tmp_path / "no" / "model"))


def test_the_rows_of_files_are_counted(tmp_path: Path) -> None:
    assert gather_facts(tiny_config(tmp_path, num_rows=11)).num_rows == 11


def test_a_run_that_resumes_may_fill_the_bytes_of_its_own_checkpoints_again(tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").write_text("{}")
    with (checkpoint / "model.safetensors").open("wb") as weights:
        weights.truncate(1 << 42)  # a sparse file takes no space
    config = tiny_config(tmp_path)
    free_bytes = gather_facts(config).free_bytes
    config.training.try_resume_from_last_checkpoint = True
    assert gather_facts(config).free_bytes - free_bytes > 1 << 41
