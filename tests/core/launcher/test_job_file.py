# SPDX-License-Identifier: Apache-2.0
"""From a training file to a job: the machines hold the run, and the job trains with the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from oumi.cli.overrides import parse_overrides
from oumi.core.configs import JobConfig
from oumi.core.configs.overrides import Override
from oumi.core.errors import ConfigError
from oumi.core.launcher.job_file import CLOUDS, make_job_file
from oumi.core.launcher.sky.task import make_task

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "tie_word_embeddings": True,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "head_dim": 128,
}  # fmt: skip
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "tie_word_embeddings": False},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
             "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def write_config(folder: Path, size: str, **training: object) -> str:
    """Writes a model without weights, and a config that trains it; returns the name of the config."""
    model = folder / "models" / size
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(LLAMA | SHAPES[size]))
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    config = {
        "model": {
            "model_name": f"models/{size}", "torch_dtype_str": "bfloat16", "model_max_length": 2048,
            "load_pretrained_weights": False,
        },
        "data": {"train": {"datasets": [{"dataset_name": "text_sft_jsonl", "dataset_path": "rows.jsonl"}]}},
        "training": {
            "trainer_type": "OUMI", "output_dir": "out", "max_steps": 10, "save_steps": 0,
            "enable_gradient_checkpointing": True, **training,
        },
    }  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return "train.yaml"


def read_job(text: str) -> JobConfig:
    assert len(text.splitlines()) <= 40
    return JobConfig.from_str(text)


def test_a_larger_model_gets_larger_and_then_more_gpus(folder: Path) -> None:
    job = read_job(make_job_file(write_config(folder, "1b"), [], "gcp"))
    assert job.resources.accelerators == "L4:1"
    assert job.run == "set -e\noumi train -c train.yaml\n"
    (folder / "models" / "1b").rename(folder / "models" / "old")
    job = read_job(make_job_file(write_config(folder, "8b"), [], "gcp"))
    accelerator, _, count = (job.resources.accelerators or "").partition(":")
    assert (accelerator, int(count) > 1) in [("A100-80GB", False), ("H100", False), ("L4", True), ("A100", True)]
    assert ("--fsdp.enable_fsdp true" in job.run) == (int(count) > 1)
    assert ("oumi distributed torchrun" in job.run) == (int(count) > 1)
    assert job.resources.disk_size is not None
    assert job.resources.disk_size >= 100 + 4 * 8  # the model and what is written


def test_no_machine_for_a_run_is_told_with_the_memory(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no machines of azure hold this run; 32 x h100-80gb: [\d,]+ GB on each of 86"
    ):
        make_job_file(write_config(folder, "405b"), [], "azure")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_job_of_each_cloud_loads(cloud: str, folder: Path) -> None:
    name = write_config(folder, "1b")
    job = read_job(make_job_file(name, [], cloud, "a100-80gb" if cloud in ("k8s", "slurm", "sky-slurm") else None))
    assert job.resources.cloud == cloud
    assert job.working_dir == "."
    if cloud not in ("local", "slurm"):
        assert make_task(job)["resources"]["accelerators"] == job.resources.accelerators
    if cloud == "slurm":
        assert job.resources.accelerators == ":1"


def test_overrides_and_secrets_become_part_of_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t")
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    name = write_config(folder, "1b")
    overrides = parse_overrides(["--training.run_name", "it's $(x)", "--training.max_steps", "5"])
    text = make_job_file(name, overrides, "gcp")
    job = read_job(text)
    assert "s3cr3t" not in text
    assert job.secrets == ["HF_TOKEN"]
    assert job.name == "it-s-x"
    assert """--training.run_name 'it'"'"'s $(x)' --training.max_steps 5""" in job.run
    assert make_job_file(name, [], "gcp").count("WANDB_API_KEY") == 0
    assert "- WANDB_API_KEY" in make_job_file(name, parse_overrides(["--training.enable_wandb", "true"]), "gcp")


def test_hostile_names_stay_within_their_comment_and_their_argument(folder: Path) -> None:
    name = write_config(folder, "1b", output_dir="out\nrun: touch hit\u2028x: 1")
    text = make_job_file(name, [Override("model.model_kwargs.$(touch hit)", "1", "")], "gcp", "l4", "job\nenvs: 1")
    job = read_job(text)
    assert job.envs == {}
    assert job.run == "set -e\noumi train -c train.yaml '--model.model_kwargs.$(touch hit)' 1\n"


def test_a_run_whose_memory_is_unknown_gets_the_gpu_that_is_named(folder: Path) -> None:
    name = write_config(folder, "1b", trainer_type="TRL_SFT")
    with pytest.raises(ConfigError, match="the memory of trainer TRL_SFT cannot be predicted; name a GPU by --device"):
        make_job_file(name, [], "gcp")
    text = make_job_file(name, [], "gcp", "h100-80gb")
    assert "# 1 x 1 h100-80gb: the memory of trainer TRL_SFT cannot be predicted." in text
    assert read_job(text).resources.accelerators == "H100:1"
    assert read_job(make_job_file(name, [], "aws", "h100-80gb")).resources.accelerators == "H100:8"


def test_what_the_run_reads_gets_there_or_is_told_not_to(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = write_config(folder, "1b")
    assert read_job(make_job_file(name, [], "gcp")).file_mounts == {}
    rows = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows.write_text("{}\n")
    overrides = parse_overrides(["--data.train.datasets[0].dataset_path", str(rows)])
    assert read_job(make_job_file(name, overrides, "gcp")).file_mounts == {str(rows): str(rows)}
    assert read_job(make_job_file(name, overrides, "local")).file_mounts == {}
    (folder / ".gitignore").write_text("*.jsonl\nmodels/\n")
    text = make_job_file(name, [], "gcp")
    assert "# rows.jsonl is not uploaded, since git ignores it" in text
    assert "# models/1b is not uploaded" in text


def test_what_a_job_file_cannot_be_made_of_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = write_config(folder, "1b")
    with pytest.raises(ConfigError, match="--device: required with k8s, whose GPUs are not known here: a100-40gb"):
        make_job_file(name, [], "k8s")
    with pytest.raises(ConfigError, match="unknown device 'h100', did you mean 'h100-80gb'"):
        make_job_file(name, [], "k8s", "h100")
    with pytest.raises(ConfigError, match="--device: lambda has no l4; it has a100-40gb"):
        make_job_file(name, [], "lambda", "l4")
    with pytest.raises(ConfigError, match="no job file can be made for 'gpc', did you mean 'gcp'"):
        make_job_file(name, [], "gpc")
    outside = tmp_path_factory.mktemp("outside") / "train.yaml"
    outside.write_text((folder / name).read_text())
    with pytest.raises(ConfigError, match="expected a file below the current directory"):
        make_job_file(str(outside), [], "local")
