# SPDX-License-Identifier: Apache-2.0
"""The command line: output and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from oumi import __version__
from oumi.cli.main import run
from oumi.core.configs import TrainingConfig
from tests.runs import tiny_config

RECIPE = "smollm-135m"
TINY = """
model:
  model_name: model
data:
  train:
    datasets:
      - {dataset_name: text_sft, dataset_path: chats.jsonl}
training:
  trainer_type: OUMI
  per_device_train_batch_size: 4
  num_train_epochs: 2
"""


class Output(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def oumi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Output]:
    """Runs the command line in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Output:
        monkeypatch.setattr(sys, "argv", ["oumi", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        return Output(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Returns the name of a config file of a tiny run."""
    tiny_config(tmp_path)  # writes the model and the chats
    (tmp_path / "tiny.yaml").write_text(TINY)
    return "tiny.yaml"


def test_the_version_is_printed(oumi: Callable[..., Output]) -> None:
    assert oumi("--version") == (0, f"{__version__}\n", "")


def test_recipes_are_listed_by_the_name_that_train_takes(oumi: Callable[..., Output]) -> None:
    listed = oumi("train", "--list").out.split()
    assert {"quickstart", RECIPE, "llama3.2-3b-lora"} <= set(listed)
    for plan in (oumi("plan", "-c", name) for name in listed):
        assert plan.code == 0 or "pip install 'oumi[narrow]'" in plan.err  # of QLoRA


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "--config"),
        (["train", "tiny.yaml"], "a config file is passed with -c tiny.yaml"),
        (["train", "-c", "tiny.yaml", "training.seed=1"], "did you mean '--training.seed=1'?"),
        (["train", "-c", "tiny.yml"], "did you mean 'tiny.yaml'?"),
        (["train", "-c", "smolm-135m"], "did you mean 'smollm-135m'?"),
        (["train", "-c", "."], "is a directory; it contains tiny.yaml"),
        (["train", "-c", "tiny.yaml", "--training.trainer_type", "TRL_GKD"], "TRL_GKD is not supported yet"),
        (["plan", "-c", "tiny.yaml", "--training.sede", "1"], "did you mean 'seed'?"),
        (["config", "show", "nothing.yaml"], "no such file"),
        (["config", "schema", "--kind", "jobs"], "must be training, inference or job"),
        (["infer", "out"], "input_path: required; set it in the config, or with --input"),
        (["infer", "-i"], "expected either the directory of a model"),
        (["chat", "nowhere"], "no such directory"),
        (["--log-level", "loud", "env"], "must be one of debug"),
        (["trian"], "train"),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(
    oumi: Callable[..., Output], config: str, arguments: list[str], words: str
) -> None:
    output = oumi(*arguments)
    assert output.code == 2
    assert words in output.err
    assert "Traceback" not in output.err


def test_a_plan_is_for_people_and_for_programs(oumi: Callable[..., Output], config: str) -> None:
    text = oumi("plan", "-c", config, "--training.learning_rate", "3e-4").out
    assert "learning rate 0.0003" in text
    assert "24 rows" in text
    plan = json.loads(oumi("plan", "-c", config, "--json", "--training.learning_rate=3e-4").out)
    assert plan["optimizer"]["learning_rate"] == 3e-4
    assert plan["steps"]["total"] == 12


def test_every_file_is_checked_after_a_wrong_file(oumi: Callable[..., Output], config: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(TINY + "  sede: 1\n  learning_rate: fast\n")
    output = oumi("config", "check", "wrong.yaml", config, RECIPE)
    assert output.code == 2
    assert output.out == f"{config}: OK\n{RECIPE}: OK\n"
    assert "wrong.yaml:12:3 training.sede: unknown key, did you mean 'seed'?" in output.err
    assert "wrong.yaml:13:3 training.learning_rate: got 'fast', must be a number" in output.err


def test_a_trainer_that_is_not_built_does_not_pass_the_check(
    oumi: Callable[..., Output], config: str, tmp_path: Path
) -> None:
    (tmp_path / "gkd.yaml").write_text(TINY.replace("OUMI", "TRL_GKD"))
    output = oumi("config", "check", "gkd.yaml")
    assert output.code == 2
    assert "gkd.yaml:9:3 training.trainer_type: TRL_GKD is not supported yet" in output.err


FOUR = """\
model: {model_name: model}
data: {train: {datasets: [{dataset_name: text_sft, dataset_path: chats.jsonl}]}}
training:
  trainer_type: TRL_GKD
  optimizer: adamw_trch
  learning_rate: fast
  max_stesp: 10
"""


def test_problems_of_every_kind_are_reported_at_once(oumi: Callable[..., Output], config: str, tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text(FOUR)
    available = "OUMI, TRL_SFT, HF, TRL_DPO, TRL_KTO, TRL_ORPO, TRL_CPO"
    problems = f"""\
four.yaml: 4 problems
  four.yaml:4:3 training.trainer_type: TRL_GKD is not supported yet; available: {available}
  four.yaml:5:3 training.optimizer: unknown optimizer 'adamw_trch', did you mean 'adamw_torch'?
  four.yaml:6:3 training.learning_rate: got 'fast', must be a number
  four.yaml:7:3 training.max_stesp: unknown key, did you mean 'max_steps'?
"""
    assert oumi("config", "check", "four.yaml") == (2, "", problems)
    assert oumi("train", "-c", "four.yaml") == (2, "", f"Error: {problems}")
    assert oumi("plan", "-c", "four.yaml") == (2, "", f"Error: {problems}")


def test_problems_of_arguments_are_reported_with_those_of_the_file(
    oumi: Callable[..., Output], config: str, tmp_path: Path
) -> None:
    (tmp_path / "four.yaml").write_text(FOUR)
    output = oumi("train", "-c", "four.yaml", "--training.sede", "3", "training.seed=4", "--training.max_steps", "{x")
    assert output.code == 2
    assert "four.yaml: 7 problems" in output.err
    assert "  training.seed=4 expected --section.key value, did you mean '--training.seed=4'?" in output.err
    assert "  --training.sede training.sede: unknown key, did you mean 'seed'?" in output.err
    assert "  --training.max_steps training.max_steps: not valid YAML" in output.err


def test_a_job_that_leaves_its_user_to_the_launch_passes_its_check(oumi: Callable[..., Output], tmp_path: Path) -> None:
    (tmp_path / "a_job.yaml").write_text("resources: {cloud: polaris}\nrun: echo\nenvs: {A: true}\n")
    assert oumi("config", "check", "a_job.yaml") == (
        0,
        "a_job.yaml: OK\n  note: user: required on polaris at launch\n",
        "",
    )


def test_values_are_shown_with_their_origin(oumi: Callable[..., Output], config: str) -> None:
    shown = oumi("config", "show", config, "--training.seed", "7").out.splitlines()
    assert "training.seed: 7  # --training.seed" in shown
    assert 'training.trainer_type: "OUMI"  # tiny.yaml:9:3' in shown
    assert "model.tokenizer_name: null  # default" in shown
    only_set = oumi("config", "show", config, "--set-only").out.splitlines()
    assert 0 < len(only_set) < len(shown)
    assert not any(line.endswith("# default") for line in only_set)


def test_a_schema_knows_every_section_and_its_documentation(oumi: Callable[..., Output]) -> None:
    schema = json.loads(oumi("config", "schema").out)
    assert set(schema["properties"]) == set(TrainingConfig.model_fields)
    assert all(field.get("description") for field in schema["$defs"]["TrainingParams"]["properties"].values())
    assert "run" in json.loads(oumi("config", "schema", "--kind", "job").out)["properties"]
    assert "generation" in json.loads(oumi("config", "schema", "--kind", "inference").out)["properties"]


def test_the_environment_is_printed_without_secrets(
    oumi: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue123")
    for output in (oumi("env"), oumi("env", "--json")):
        assert output.code == 0
        assert "HF_TOKEN" in output.out
        assert "verysecret" not in output.out
