# SPDX-License-Identifier: Apache-2.0
"""Reading and writing config files: round trips, references, choices, assignment."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.core.configs import JobConfig, MixedPrecisionDtype, PeftSaveMode, TrainerType, TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.plan.refusals import check

BASE = "model: {model_name: oumi://tiny}\ndata: {train: {datasets: [{dataset_name: a}]}}\n"
FULL = """
data:
  train:
    datasets:
      - {dataset_name: a, split: 'train[:10%]', mixture_proportion: 0.25, dataset_kwargs: {deep: {er: [1, null]}}}
      - {dataset_name: b, mixture_proportion: 0.75, shuffle: true, seed: 7, transform_num_workers: auto}
    collator_name: text_completions_only_with_padding
    train_target: FINAL_ASSISTANT_TURN
    mixture_strategy: all_exhausted
  validation:
    datasets: [{dataset_name: c}]
model:
  model_name: 'no'
  torch_dtype_str: float32
  tokenizer_pad_token: '~'
  freeze_layers: ['1', 'on', 'a: b', '#c']
training:
  trainer_type: TRL_SFT
  run_name: "été — 日本\\n\\ttwo lines"
  learning_rate: 1e-05
  adam_epsilon: 1.0e-12
  mixed_precision_dtype: BF16
  max_grad_norm: null
  dataloader_num_workers: auto
  trainer_kwargs:
    {text: 'true', number: '1e5', octal: '0o17', '1e6': key, none: 'null', date: 2024-01-01, reference: '\\${x}'}
  gold: {top_k: 5}
  profiler: {schedule: {warmup: 2}}
peft: {lora_target_modules: [all-linear], peft_save_mode: MERGED}
fsdp: {sharding_strategy: SHARD_GRAD_OP}
deepspeed: {zero_stage: ZERO_3, offload_param: {device: NVME}, reduce_bucket_size: auto}
"""


def test_a_written_config_is_read_back_the_same(tmp_path: Path) -> None:
    config = TrainingConfig.from_str(FULL)
    config.to_yaml(tmp_path / "written.yaml")
    again = TrainingConfig.from_yaml(tmp_path / "written.yaml")
    assert again == config
    assert again.training.trainer_kwargs["reference"] == "${x}"


def test_a_key_keeps_its_spelling() -> None:
    job = JobConfig.from_str("resources: {cloud: gcp}\nrun: echo\nenvs: {TRUE: a, 1e5: b, 'null': c, 010: d}\n")
    assert list(job.envs) == ["TRUE", "1e5", "null", "010"]


@pytest.mark.parametrize("text", ["seed: true", "learning_rate: false", "dataloader_num_workers: true"])
def test_a_flag_is_no_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"got (true|false), must be a (whole )?number"):
        TrainingConfig.from_str(f"{BASE}training: {{{text}}}")


def test_words_that_look_like_something_else_stay_words() -> None:
    config = TrainingConfig.from_str(FULL)
    assert config.model.model_name == "no"
    assert config.model.tokenizer_pad_token == "~"
    assert config.model.freeze_layers == ["1", "on", "a: b", "#c"]
    assert config.training.trainer_kwargs["date"] == "2024-01-01"


def test_numbers_are_read_by_yaml_1_2() -> None:
    config = TrainingConfig.from_str(BASE + "training: {learning_rate: 1e-4, seed: 010, save_steps: 1_000}\n")
    training = config.training
    assert (training.learning_rate, training.seed, training.save_steps) == (1e-4, 10, 1000)


def test_a_written_job_is_read_back_the_same(tmp_path: Path) -> None:
    text = "resources: {cloud: gcp, accelerators: 'A100:4', disk_size: 100}\nenvs: {A: 1, B: '${HOME}'}\n"
    text += "storage_mounts: {/data: {source: s3://b, store: s3}}\nrun: |\n  echo ${HOME}\n  echo $X\n"
    job = JobConfig.from_str(text)
    job.to_yaml(tmp_path / "job.yaml")
    assert JobConfig.from_yaml(tmp_path / "job.yaml") == job
    assert job.run == "echo ${HOME}\necho $X\n"
    assert job.envs == {"A": "1", "B": "${HOME}"}


def test_a_reference_takes_the_value_of_another_key() -> None:
    config = TrainingConfig.from_str(
        BASE
        + "training: {output_dir: out, run_name: 'at ${training.output_dir}/x', logging_dir: '${training.run_name}'}"
    )
    assert config.training.logging_dir == "at out/x"


def test_a_reference_keeps_the_type_of_its_value() -> None:
    config = TrainingConfig.from_str(BASE + "training: {save_steps: 10, eval_steps: '${training.save_steps}'}")
    assert config.training.eval_steps == 10


def test_a_reference_reads_list_entries_and_defaults() -> None:
    config = TrainingConfig.from_str(
        BASE
        + "training: {run_name: '${data.train.datasets[0].dataset_name}-${training.seed}-${training.trainer_type}'}"
    )
    assert config.training.run_name == "a-42-HF"


def test_a_reference_to_a_reference_that_is_only_text_is_filled_once() -> None:
    config = TrainingConfig.from_str(BASE + r"training: {run_name: '\${x}', output_dir: '${training.run_name}'}")
    assert (config.training.run_name, config.training.output_dir) == ("${x}", "${x}")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("7", 7), (None, 3)],
    ids=["the variable is set", "the default is taken"],
)
def test_an_environment_variable_fills_a_key(value: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUMI_TEST_STEPS", raising=False)
    if value is not None:
        monkeypatch.setenv("OUMI_TEST_STEPS", value)
    config = TrainingConfig.from_str(BASE + "training: {max_steps: '${oc.env:OUMI_TEST_STEPS,3}'}")
    assert config.training.max_steps == expected


def test_the_default_of_an_environment_variable_may_be_empty_or_hold_a_comma() -> None:
    config = TrainingConfig.from_str(
        BASE + "training: {run_name: 'a${oc.env:OUMI_TEST_UNSET,b,c}', logging_dir: '${oc.env:OUMI_TEST_UNSET,}'}"
    )
    assert (config.training.run_name, config.training.logging_dir) == ("ab,c", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run_name: '${training.run_name}'", "circular reference: training.run_name -> training.run_name"),
        ("run_name: '${training.nothing}'", "names no key of this config"),
        ("max_steps: '${oc.env:OUMI_TEST_UNSET}'", "environment variable OUMI_TEST_UNSET is not set"),
        ("run_name: '${oc.env:OUMI_TEST_UNSET,${training.seed}}'", "nested references are not supported"),
        ("run_name: '${model}'", "names a section or a list"),
    ],
)
def test_a_reference_that_cannot_be_filled_is_reported_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"text:\d+:\d+ training\.(run_name|max_steps): ") as caught:
        TrainingConfig.from_str(f"{BASE}training: {{{text}}}")
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_variable_that_another_machine_sets_stays_a_reference_until_the_run_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUMI_TEST_UNSET", raising=False)
    variable = "${oc.env:OUMI_TEST_UNSET}"
    text = f"training: {{trainer_type: OUMI, output_dir: '{variable}/out', optimizer: '{variable}'}}"
    config = TrainingConfig.from_str(BASE + text)
    assert config.training.output_dir == "${oc.env:OUMI_TEST_UNSET}/out"
    with pytest.raises(ConfigError) as refused:
        check(config)
    assert [problem.key for problem in refused.value.problems] == ["training.output_dir", "training.optimizer"]
    config.to_yaml(tmp_path / "written.yaml")
    monkeypatch.setenv("OUMI_TEST_UNSET", "sgd")
    again = TrainingConfig.from_yaml(tmp_path / "written.yaml")
    assert (again.training.output_dir, again.training.optimizer) == ("sgd/out", "sgd")
    config.training.output_dir, config.training.optimizer = "out", "sgd"
    check(config)


def test_a_reference_is_filled_though_something_else_is_wrong() -> None:
    with pytest.raises(ConfigError) as refused:
        TrainingConfig.from_str(BASE + "training: {seed: 1, seed: 2, eval_steps: '${training.save_steps}'}")
    assert [problem.message for problem in refused.value.problems] == ["duplicate key, first at text:3:12"]


def test_references_can_be_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "training: {run_name: '${x}'}")
    assert TrainingConfig.from_yaml(tmp_path / "a.yaml", ignore_interpolation=True).training.run_name == "${x}"


@pytest.mark.parametrize("text", ["TRL_SFT", "trl_sft", "Trl_Sft", "TrainerType.TRL_SFT", "TrainerType.trl_sft"])
def test_a_choice_is_selected_by_name_or_value_in_any_case(text: str) -> None:
    config = TrainingConfig.from_str(f"{BASE}training: {{trainer_type: {text}}}")
    assert config.training.trainer_type is TrainerType.TRL_SFT


@pytest.mark.parametrize("text", ["ZERO_2", "zero_2", "2", "'2'"])
def test_a_zero_stage_is_selected_by_name_or_number(text: str) -> None:
    config = TrainingConfig.from_str(f"{BASE}deepspeed: {{zero_stage: {text}}}")
    assert config.deepspeed.zero_stage.name == "ZERO_2"


def test_a_choice_is_assigned_by_name_value_or_member() -> None:
    config = TrainingConfig()
    for value in ("merged", "MERGED", PeftSaveMode.MERGED):
        config.peft.peft_save_mode = value  # type: ignore[assignment]  # read on assignment
        assert config.peft.peft_save_mode is PeftSaveMode.MERGED
    config.training.mixed_precision_dtype = "none"  # type: ignore[assignment]
    assert config.training.mixed_precision_dtype is MixedPrecisionDtype.NONE


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_steps", "ten", "max_steps: got 'ten', must be a whole number"),
        ("learning_rate", float("nan"), "learning_rate: got nan, must be"),
        ("trainer_type", "TRL_STF", "did you mean 'TRL_SFT'?"),
        ("learning_rat", 1.0, "unknown key, did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_assignment_is_refused_and_changes_nothing(name: str, value: object, words: str) -> None:
    config = TrainingConfig()
    with pytest.raises(ConfigError) as caught:
        setattr(config.training, name, value)
    assert words in str(caught.value)
    assert config == TrainingConfig()
    assert config.keys_set() == set()


def test_an_assignment_is_recognized_to_come_from_python() -> None:
    config = TrainingConfig.from_str(BASE + "training: {seed: 1}")
    config.training.seed = 2
    config.peft.lora_r = 4
    assert config.origin_of("training.seed") == "set in Python"
    assert config.origin_of("peft.lora_r") == "set in Python"
    assert config.origin_of("peft.lora_alpha") == "default"


def test_a_constructor_argument_is_recognized_to_come_from_python() -> None:
    config = TrainingConfig(peft={"lora_r": 4})  # type: ignore[arg-type]  # pydantic reads mappings
    assert config.keys_set() == {"peft.lora_r"}


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert TrainingConfig.from_yaml(tmp_path / "a.yaml").model.model_name == "oumi://tiny"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        TrainingConfig.from_yaml(tmp_path / "a.yaml")


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        TrainingConfig.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["007", "1e5", "12e4567", "0x10", "1_000", "1.50", "+3"])
def test_a_number_is_the_text_that_is_written_where_text_is_expected(text: str) -> None:
    config = TrainingConfig.from_str(
        f"model: {{model_name: {text}, model_revision: {text}, freeze_layers: [{text}, a]}}\n"
        f"data: {{train: {{datasets: [{{dataset_name: a, subset: {text}}}]}}}}\n"
        f"training: {{run_name: {text}, output_dir: {text}}}\n"
    )
    names = (config.model.model_name, config.model.model_revision, config.training.run_name, config.training.output_dir)
    assert names == (text,) * 4
    assert config.model.freeze_layers == [text, "a"]
    assert config.data.train.datasets[0].subset == text


def test_a_number_stays_one_where_it_is_expected() -> None:
    config = TrainingConfig.from_str(
        "model: {model_name: m}\n"
        "data: {train: {datasets: [{dataset_name: a, dataset_kwargs: {size: 007}}]}}\n"
        "training: {learning_rate: 1e-4, max_steps: 1_000}\n"
    )
    assert (config.training.learning_rate, config.training.max_steps) == (1e-4, 1000)
    assert config.data.train.datasets[0].dataset_kwargs == {"size": 7}


def test_every_scalar_is_text_in_the_environment_of_a_job() -> None:
    text = (
        "resources: {cloud: gcp}\nrun: echo\nenvs: {A: true, B: , C: 008, D: no, E: 1e5, F: False, G: ~, H: 'null'}\n"
    )
    envs = {"A": "true", "B": "", "C": "008", "D": "no", "E": "1e5", "F": "False", "G": "", "H": "null"}
    assert JobConfig.from_str(text).envs == envs
    with pytest.raises(ConfigError, match=r"envs\.A: got a list, must be text"):
        JobConfig.from_str("resources: {cloud: gcp}\nrun: echo\nenvs: {A: [b]}\n")


def test_what_a_job_lacks_is_requested_at_launch() -> None:
    job = JobConfig.from_str("resources: {cloud: frontier}\nrun: echo\n")
    assert [problem.key for problem in job.missing_at_launch()] == ["user", "working_dir"]
    job.user, job.working_dir = "me", "."
    assert job.missing_at_launch() == []


def test_a_section_list_or_mapping_without_a_word_is_empty() -> None:
    config = TrainingConfig.from_str(
        BASE.replace("}\n", ", freeze_layers: }\n", 1) + "training:\n  trainer_kwargs:\npeft:\nfsdp: ~\n"
    )
    assert (config.model.freeze_layers, config.training.trainer_kwargs) == ([], {})
    assert config.peft == TrainingConfig().peft


def test_a_config_may_name_files_of_another_machine() -> None:
    config = TrainingConfig.from_str(BASE.replace("dataset_name: a", "dataset_name: a, dataset_path: /not/here.jsonl"))
    config.finalize_and_validate()
    with pytest.raises(ConfigError, match=r"dataset_path: no such file or directory: /not/here\.jsonl"):
        check(config)


def test_temperatures_of_a_loss_that_is_off_are_not_looked_at() -> None:
    text = BASE + "training: {gold: {use_uld_loss: false, uld_student_temperature: 0}}"
    TrainingConfig.from_str(text)
    with pytest.raises(ConfigError, match=r"uld_student_temperature: got 0, must be > 0"):
        TrainingConfig.from_str(text.replace("false", "true"))


def test_a_job_file_is_reported_as_one() -> None:
    with pytest.raises(ConfigError, match="a job file; expected a training config") as refused:
        TrainingConfig.from_str("name: mine\nresources: {cloud: local}\nrun: oumi train -c ${X}\n")
    assert len(refused.value.problems) == 1
