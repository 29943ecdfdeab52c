# SPDX-License-Identifier: Apache-2.0
"""Values given on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.cli.overrides import parse_overrides
from oumi.core.configs import TrainerType, TrainingConfig
from oumi.core.configs.loading import leaves
from oumi.core.errors import ConfigError

BASE = """\
model:
  model_name: oumi://tiny
data:
  train:
    datasets:
      - dataset_name: a
training:
  seed: 1
  trainer_kwargs: {a: {b: 1}, c: 2}
"""


TEXTS = (
    "007", "1e5", "3.10", "true", "null", "1_000", "0x1F", "2026-01-02", "12:30:45", "work/exp #3", '"quoted"', "'x'",
    " a ", "a: b", "[a", "{b", "*c", "&d", "!e", "- f", "%g", "@h", "a,b", "a\\b", "ü # ß",
)  # fmt: skip
"""Text that YAML would read as something else, or not at all."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (["--training.seed", "5"], "training.seed", 5),
        (["--training.seed=5"], "training.seed", 5),
        (["--training.max_steps", "-1"], "training.max_steps", -1),
        (["--training.learning_rate=1e-4"], "training.learning_rate", 1e-4),
        (["--training.run_name=a=b"], "training.run_name", "a=b"),
        (["--training.run_name", "5"], "training.run_name", "5"),
        (["--training.run_name", "#5"], "training.run_name", "#5"),
        (["--training.run_name", "null"], "training.run_name", None),
        (["--training.run_name="], "training.run_name", ""),
        (["--training.use_peft"], "training.use_peft", True),
        (["--training.use_peft", "--training.seed", "5"], "training.use_peft", True),
        (["--peft.lora_target_modules", "[q_proj, v_proj]"], "peft.lora_target_modules", ["q_proj", "v_proj"]),
        (["--peft.lora_target_modules", r".*\.(q|v)_proj"], "peft.lora_target_modules", r".*\.(q|v)_proj"),
        (["--training.use_peft", "false"], "training.use_peft", False),
        (["--no-training.enable_tensorboard"], "training.enable_tensorboard", False),
        (["--data.train.datasets[0].split", "test"], "data.train.datasets[0].split", "test"),
        (["--data.train.datasets[0].split=test"], "data.train.datasets[0].split", "test"),
        (["--data.train.datasets.0.split", "test"], "data.train.datasets[0].split", "test"),
        (["--data.train.datasets[1].dataset_name", "b"], "data.train.datasets[1].dataset_name", "b"),
        (["--data.train.datasets", "[{dataset_name: z}]"], "data.train.datasets[0].dataset_name", "z"),
        (["--model.freeze_layers", "[x, y]"], "model.freeze_layers", ["x", "y"]),
        (["--training.profiler.schedule.wait", "2"], "training.profiler.schedule.wait", 2),
        (
            ["--deepspeed.offload_optimizer", "{}", "--deepspeed.zero_stage=3"],
            "deepspeed.offload_optimizer.buffer_count",
            4,
        ),
        (["--training.seed", "5", "--training.seed", "6"], "training.seed", 6),
        (["--training.run_name", "${model.model_name}"], "training.run_name", "oumi://tiny"),
    ],
)
def test_an_argument_sets_a_key(file: Path, arguments: list[str], key: str, expected: object) -> None:
    assert leaves(TrainingConfig.load(file, parse_overrides(arguments)))[key] == expected


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", ["override", "variable", "default of a variable", "reference"])
def test_text_is_taken_as_it_stands_where_a_key_takes_text(
    way: str, text: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUMI_TEST_TEXT", text)
    values = {
        "override": text,
        "variable": "${oc.env:OUMI_TEST_TEXT}",
        "default of a variable": f"${{oc.env:OUMI_TEST_UNSET,{text}}}",
        "reference": "${training.logging_dir}",
    }
    if way == "default of a variable" and (set(text) & set("{}") or text in ("null", " a ")):
        pytest.skip("it ends or trims the reference, or is the default null")
    if way == "override" and text == "null":
        pytest.skip("it removes the value")
    arguments = ["--training.run_name", values[way], "--training.logging_dir", "${oc.env:OUMI_TEST_TEXT}"]
    config = TrainingConfig.load(file, parse_overrides(arguments))
    assert config.training.run_name == text
    config.to_yaml(tmp_path / "written.yaml")
    assert TrainingConfig.from_yaml(tmp_path / "written.yaml").training.run_name == text
    inside = TrainingConfig.load(file, parse_overrides([*arguments, "--training.output_dir", "a/${training.run_name}"]))
    assert inside.training.output_dir == f"a/{text}"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.max_steps", "0012", 12),
        ("training.learning_rate", "2e-5", 2e-5),
        ("training.use_peft", "true", True),
        ("training.per_device_train_batch_size", "8", 8),
        ("training.per_device_train_batch_size", "auto", "auto"),
        ("data.train.seed", "null", None),
        ("data.train.seed", "", None),
        ("peft.q_lora_bits", "8", 8),
        ("deepspeed.reduce_bucket_size", "500", 500),
        ("training.trainer_type", "oumi", TrainerType.OUMI),
    ],
)
def test_a_variable_of_the_environment_has_the_type_of_the_key_that_it_fills(
    key: str, text: str, value: object, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUMI_TEST_TEXT", text)
    config = TrainingConfig.load(file, parse_overrides([f"--{key}", "${oc.env:OUMI_TEST_TEXT}"]))
    assert leaves(config)[key] == value


def test_an_option_of_any_type_is_a_number_or_else_the_whole_text(file: Path) -> None:
    options = {"a": "5", "b": "1 #2", "c": "'5'", "d": "[1, x]", "e": "x: y", "f": "true", "g": "#1", "h": "{}"}
    arguments = [word for key, text in options.items() for word in (f"--training.trainer_kwargs.{key}", text)]
    config = TrainingConfig.load(file, parse_overrides(arguments))
    expected = {"a": 5, "b": "1 #2", "c": "5", "d": [1, "x"], "e": {"x": "y"}, "f": True, "g": "#1", "h": {}}
    assert {key: config.training.trainer_kwargs[key] for key in options} == expected


def test_a_mapping_joins_the_mapping_that_is_there_at_every_depth(file: Path) -> None:
    arguments = ["--training.trainer_kwargs", "{a: {d: 3}, e: [4]}", "--training.trainer_kwargs.f.g", "5"]
    config = TrainingConfig.load(file, parse_overrides(arguments))
    assert config.training.trainer_kwargs == {"a": {"b": 1, "d": 3}, "c": 2, "e": [4], "f": {"g": 5}}


def test_a_mapping_sets_keys_of_a_section_and_leaves_the_others(file: Path) -> None:
    config = TrainingConfig.load(file, parse_overrides(["--training", "{max_steps: 9}"]))
    assert (config.training.max_steps, config.training.seed) == (9, 1)


def test_a_list_replaces_the_list_that_is_there(file: Path) -> None:
    config = TrainingConfig.load(
        file, parse_overrides(["--data.train.datasets=[{dataset_name: y}, {dataset_name: z}]"])
    )
    assert [dataset.dataset_name for dataset in config.data.train.datasets] == ["y", "z"]


def test_an_override_changes_one_of_two_places_that_an_alias_made_equal(file: Path) -> None:
    file.write_text(
        "model: {model_name: m}\ndata:\n  train: &rows {datasets: [{dataset_name: a}]}\n  validation: *rows\n"
    )
    config = TrainingConfig.load(file, parse_overrides(["--data.validation.datasets[0].split", "test"]))
    assert config.data.train.datasets[0].split == "train"
    assert config.data.validation.datasets[0].split == "test"


@pytest.mark.parametrize("arguments", [["--local-rank=0"], ["--local_rank=0"], ["--local-rank", "0"]])
def test_the_local_rank_of_old_launchers_is_dropped(file: Path, arguments: list[str]) -> None:
    config = TrainingConfig.load(file, parse_overrides([*arguments, "--training.seed", "5"]))
    assert config.training.seed == 5
    assert TrainingConfig.load(file, parse_overrides(arguments)) == TrainingConfig.from_yaml(file)


def test_an_argument_list_from_python_is_read_alike(file: Path) -> None:
    config = TrainingConfig.from_yaml_and_arg_list(file, ["training.seed=5", "--local-rank=0"])
    assert config.training.seed == 5


def test_a_config_may_come_from_arguments_alone() -> None:
    arguments = ["--model.model_name", "m", "--data.train.datasets[0].dataset_name", "a"]
    config = TrainingConfig.load(None, parse_overrides(arguments))
    assert config.keys_set() == {"model.model_name", "data.train.datasets[0].dataset_name"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training.seed", "5"], "training.seed expected --section.key value"),
        (["--"], "-- expected --section.key value"),
        (["--=x"], "--=x expected --section.key value"),
        (["-v"], "-v expected --section.key value"),
        (["--training[seed]", "5"], "--training[seed] training[seed]: not a valid key"),
        (["--training[", "5"], "--training[ training[: not a valid key"),
        (["--training..seed", "5"], "--training..seed training..seed: not a valid key"),
        (["--data.train.datasets[-1].split", "x"], "--data.train.datasets[-1].split"),
        (["--data.train.datasets[5].split", "x"], "the list has 1 entries, so there is no [5]"),
        (["--data.train.datasets[0].split.x", "y"], "--data.train.datasets[0].split.x"),
        (["--training.seed", "five"], "--training.seed training.seed: got 'five', must be a whole number"),
        (["--training.sede", "5"], "--training.sede training.sede: unknown key, did you mean 'seed'?"),
        (["--seed", "5"], "--seed seed: unknown key here; it belongs in"),
        (["--training.trainer_kwargs", "{x"], "--training.trainer_kwargs training.trainer_kwargs: not valid YAML"),
        (["--training.trainer_kwargs.x", "!!python/name:os.system"], "'!!python/name:os.system' is refused"),
        (["--no-training.seed"], "--no-training.seed training.seed: got false, must be a whole number"),
        (["--training.use_peft", "maybe"], "--training.use_peft training.use_peft: got 'maybe', must be true or false"),
    ],
)
def test_a_malformed_argument_is_reported_by_its_flag(file: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.load(file, parse_overrides(arguments))
    assert words in str(caught.value)


def test_every_malformed_argument_is_reported_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.load(file, parse_overrides(["--training.seed", "x", "--peft.lora_r=0", "--modle.x", "1"]))
    assert len(caught.value.problems) == 3


def test_every_value_knows_where_it_comes_from(file: Path) -> None:
    arguments = ["--training.max_steps", "5", "--no-training.enable_tensorboard", "--data.train.datasets.0.split=x"]
    config = TrainingConfig.load(file, parse_overrides(arguments))
    assert config.origin_of("model.model_name") == "train.yaml:2:3"
    assert config.origin_of("data.train.datasets[0].dataset_name") == "train.yaml:6:9"
    assert config.origin_of("data.train.datasets[0].split") == "--data.train.datasets.0.split"
    assert config.origin_of("training.seed") == "train.yaml:8:3"
    assert config.origin_of("training.max_steps") == "--training.max_steps"
    assert config.origin_of("training.enable_tensorboard") == "--no-training.enable_tensorboard"
    assert config.origin_of("training.learning_rate") == "default"
    assert config.keys_set() == {
        "model.model_name",
        "data.train.datasets[0].dataset_name",
        "data.train.datasets[0].split",
        "training.seed",
        "training.trainer_kwargs",
        "training.max_steps",
        "training.enable_tensorboard",
    }


def test_an_override_takes_the_place_of_the_file_in_what_is_reported(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--training\.seed training\.seed: got -1, must be >= 0"):
        TrainingConfig.load(file, parse_overrides(["--training.seed=-1"]))
