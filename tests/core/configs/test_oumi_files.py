# SPDX-License-Identifier: Apache-2.0
"""Files with the traits of those that Oumi ships: each is read anywhere, and its check tells what is in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi.cli.config import check_file
from oumi.core.configs import JobConfig, TrainingConfig
from oumi.core.errors import ConfigError

FOLDER = Path(__file__).with_name("oumi_files")
TRAIN_PATH, VALIDATION_PATH = "data.train.datasets[0].dataset_path", "data.validation.datasets[0].dataset_path"
NO_FILE, NOT_BUILT = "no such file or directory", "not supported yet"

PROBLEMS = {
    "coalm_8b_lora_train": {TRAIN_PATH: NO_FILE, VALIDATION_PATH: NO_FILE},
    "coalm_70b_full_train": {TRAIN_PATH: NO_FILE, VALIDATION_PATH: NO_FILE},
    "coalm_405b_qlora_train": {TRAIN_PATH: NO_FILE},
    "llava_7b_dpo_train": {TRAIN_PATH: NO_FILE},
    "phi3_vision_dpo_train": {TRAIN_PATH: NO_FILE},
    "grpo_tldr_train": {"training.trainer_type": NOT_BUILT},
    "letter_counting_grpo_train": {"training.trainer_type": NOT_BUILT},
    "qwen2_5_vl_openr1_train": {
        "training.output_dir": "environment variable SCRATCH_OF_THE_CLUSTER is not set",
    },
}
"""Training file -> the problems that its check tells: key and words."""

NOTES = {
    "smollm_135m_slurm_job": [],
    "countdown_slurm_job": [],
    "gsm8k_slurm_job": [],
    "deepseek_r1_frontier_job": ["user: required on frontier at launch"],
    "qwen3_8b_perlmutter_job": ["user: required on perlmutter at launch"],
    "llama3_70b_polaris_job": ["user: required on polaris at launch"],
    "llama3_8b_polaris_job": ["user: required on polaris at launch"],
    "evaluation_polaris_job": ["user: required on polaris at launch"],
    "vision_llava_gcp_job": [],
    "fineweb_gcp_job": [],
    "falcon_h1_lambda_job": [],
    "phi4_gcp_job": [],
}
"""Job file -> what its check says is left to the launch."""


def test_every_file_has_its_place_in_a_table() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted([*PROBLEMS, *NOTES])
    assert len(PROBLEMS) + len(NOTES) == 20


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_training_file_is_read_and_its_check_states_the_rest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCRATCH_OF_THE_CLUSTER", raising=False)
    path = FOLDER / f"{name}.yaml"
    TrainingConfig.from_yaml(path)
    with pytest.raises(ConfigError) as refused:
        check_file(str(path))
    problems = {problem.key: problem.message for problem in refused.value.problems}
    assert problems.keys() == PROBLEMS[name].keys()
    assert all(words in problems[key] for key, words in PROBLEMS[name].items())
    assert all(problem.place.startswith(path.name) for problem in refused.value.problems)


@pytest.mark.parametrize("name", NOTES)
def test_a_job_file_is_read_and_passes_its_check(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    JobConfig.from_yaml(path)
    assert [f"{note.key}: {note.message}" for note in check_file(str(path))] == NOTES[name]
