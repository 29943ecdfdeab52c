# SPDX-License-Identifier: Apache-2.0
"""The laws for TRL's preference trainers: our native losses, any number of ranks, a resumed run, the whole set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.laws.test_preference import dpo_config
from tests.runs import losses, records

LORA = {"use_peft": True}
JUDGED = [
    json.dumps(
        {
            "prompt": f"What is {i} plus 1?",
            "completion": f"It is {i + 1 - i % 2}." + " Yes!" * (i % 3),
            "label": i % 3 > 0,
        }
    )
    for i in range(23)
]
LIMITS = {"max_prompt_length": 20, "max_completion_length": 9}
SHARED = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy",
)  # fmt: skip


def preference_config(folder: Path, trainer: str, **training: Any) -> TrainingConfig:
    """Returns a run of a preference trainer of TRL, two epochs of 23 rows: steps and micro-batches are uneven."""
    settings = {"trainer_type": trainer, "method": None, "num_train_epochs": 2, "trainer_kwargs": {"beta": 0.3}}
    config = dpo_config(folder, **{**settings, **training})
    if "KTO" in trainer or config.training.method == "kto":
        path = folder / "judged.jsonl"
        path.write_text("\n".join(JUDGED))
        config.data.train.datasets[0].dataset_name = "kto_jsonl"
        config.data.train.datasets[0].dataset_path = str(path)
    config.data.train.datasets[0].sample_count = 23
    config.peft.lora_target_modules = ["q_proj", "v_proj"]
    return config


def with_evaluation(config: TrainingConfig) -> TrainingConfig:
    config.training.eval_strategy, config.training.eval_steps = "steps", 5
    config.training.per_device_eval_batch_size = 3
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


@pytest.mark.parametrize("special", [{}, LORA, {"trainer_kwargs": LIMITS}], ids=["full", "lora", "short"])
def test_dpo_of_trl_equals_our_own(tmp_path: Path, special: dict[str, Any]) -> None:
    ours = with_evaluation(preference_config(tmp_path, "OUMI", method="dpo", **special))
    theirs = with_evaluation(preference_config(tmp_path, "TRL_DPO", output_dir=str(tmp_path / "trl"), **special))
    train(ours)
    train(theirs)
    for name in ("loss", "num_tokens", "num_target_tokens", *SHARED):
        expected = [step[name] for step in records(tmp_path / "out")]
        assert [step[name] for step in records(tmp_path / "trl")] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    evaluations = [evaluation(tmp_path / folder) for folder in ("out", "trl")]
    assert {"eval_loss", *(f"eval_{name}" for name in SHARED)} <= evaluations[0].keys() <= evaluations[1].keys()
    for name, expected in evaluations[0].items():
        assert evaluations[1][name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", ["TRL_KTO", "TRL_ORPO", "TRL_CPO"])
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_other_losses_equal_our_own_where_a_step_is_a_micro_batch(
    tmp_path: Path, trainer: str, adapter: dict[str, Any]
) -> None:
    one = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, **adapter}
    train(preference_config(tmp_path, "OUMI", method=trainer.removeprefix("TRL_").lower(), **one))
    train(preference_config(tmp_path, trainer, output_dir=str(tmp_path / "trl"), **one))
    ours, theirs = records(tmp_path / "out"), records(tmp_path / "trl")
    names = {"loss", "grad_norm", "kl", "nll_loss", "log_odds_ratio", *SHARED} & ours[0].keys() & theirs[0].keys()
    assert {"loss", "grad_norm", "rewards/chosen", "logps/chosen"} <= names
    if trainer != "TRL_KTO":  # TRL averages them over prompts and padding, too
        names -= {"logits/chosen", "logits/rejected"}
    for name in names:
        # A step may have no rejected completion.
        pairs = [(step[name], other[name]) for step, other in zip(ours, theirs, strict=True) if name in other]
        assert [other for _, other in pairs] == pytest.approx([step for step, _ in pairs], rel=1e-4, abs=2e-5), name


@pytest.mark.narrow
@pytest.mark.parametrize("trainer", ["TRL_DPO", "TRL_KTO"])
def test_an_adapter_on_weights_in_4_bits_trains_as_in_our_own_trainer(tmp_path: Path, trainer: str) -> None:
    one = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 6, "learning_rate": 1e-2}
    for name in ("OUMI", trainer):
        method = trainer.removeprefix("TRL_").lower() if name == "OUMI" else None
        config = preference_config(tmp_path, name, method=method, output_dir=str(tmp_path / name), **one, **LORA)
        config.peft.q_lora, config.model.torch_dtype_str = True, "float32"
        train(config)
    ours, theirs = records(tmp_path / "OUMI"), records(tmp_path / trainer)
    for key in ("loss", "rewards/chosen", "logps/chosen"):
        assert [step[key] for step in theirs] == pytest.approx([step[key] for step in ours], rel=1e-3, abs=1e-4), key


def evaluation(folder: Path) -> dict[str, float]:
    """Returns what the last evaluation of a run measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "eval_loss" in line)
    return {name: value for name, value in last.items() if name.startswith("eval_") and "second" not in name}


@pytest.mark.sample(2)
@pytest.mark.parametrize("trainer", ["TRL_DPO", "TRL_KTO", "TRL_ORPO", "TRL_CPO"])
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, trainer: str, adapter: dict[str, Any]) -> None:
    config = preference_config(tmp_path, trainer, save_steps=5, try_resume_from_last_checkpoint=True, **adapter)
    train(config)
    out = tmp_path / "out"
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    before, saved = losses(out), (out / name).read_bytes()
    for folder in ("checkpoint-10", "checkpoint-12"):  # as a kill after step 5 would leave it
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / name).unlink()
    train(config)
    assert losses(out) == before
    assert (out / name).read_bytes() == saved
    assert len(before) == 12


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"precompute_ref_log_probs": True, "precompute_ref_batch_size": 5}, {}),
        ({"rpo_alpha": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    ],
    ids=["precomputed", "rpo"],
)
def test_two_spellings_are_the_same_loss(tmp_path: Path, one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, kwargs in (("one", one), ("other", other)):
        kwargs = {"beta": 0.3, **kwargs}
        train(
            preference_config(tmp_path, "TRL_DPO", max_steps=7, trainer_kwargs=kwargs, output_dir=str(tmp_path / name))
        )
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "other"), rel=1e-5)


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_without_a_reference_rewards_are_the_log_probabilities(tmp_path: Path, adapter: dict[str, Any]) -> None:
    kwargs = {"beta": 0.3, "reference_free": True}
    train(preference_config(tmp_path, "TRL_DPO", max_steps=2, trainer_kwargs=kwargs, **adapter))
    for step in records(tmp_path / "out"):
        assert step["rewards/chosen"] == pytest.approx(0.3 * step["logps/chosen"], rel=1e-5)
        assert step["rewards/rejected"] == pytest.approx(0.3 * step["logps/rejected"], rel=1e-5)


def test_an_adapter_that_is_continued_is_its_own_reference(tmp_path: Path) -> None:
    train(preference_config(tmp_path, "TRL_DPO", output_dir=str(tmp_path / "first"), **LORA))
    config = preference_config(tmp_path, "TRL_DPO", **LORA)
    config.model.adapter_model = str(tmp_path / "first")
    config.peft.lora_target_modules = None
    train(config)
    steps = records(tmp_path / "out")
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2: the model is its own reference
    assert steps[-1]["loss"] < 0.65
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "ref" not in files  # TRL's copy of the adapter
