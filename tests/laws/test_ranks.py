# SPDX-License-Identifier: Apache-2.0
"""Two ranks train to the losses and weights of one, whatever the method, and their checkpoints fit any number."""

from __future__ import annotations

import math
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.configs import TrainingConfig
from oumi.core.train import train
from tests.faults.test_not_finite import poisoned
from tests.laws.test_preference import config_of, dpo_config
from tests.ranks import SECONDS, free_port, run_ranks, start_ranks
from tests.runs import records, tiny_config, weights
from tests.tiny import save_tiny_model

DRIVER = Path(__file__).with_name("ranks_driver.py")


def sft_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run on 27 chats, so that the last step of an epoch has three rows: one rank gets an empty batch."""
    config = tiny_config(folder, num_rows=27, per_device_train_batch_size=1, max_steps=10, **training)
    config.training.eval_strategy = "steps"
    config.training.eval_steps = 5
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


def pairs_config(folder: Path, **training: Any) -> TrainingConfig:
    config = dpo_config(folder, per_device_train_batch_size=1, max_steps=10, num_train_epochs=2, **training)
    config.data.train.datasets[0].sample_count = 23
    return config


def trl_pairs_config(folder: Path, **training: Any) -> TrainingConfig:
    config = pairs_config(folder, trainer_type="TRL_DPO", **training)
    config.training.method = None
    config.training.eval_strategy, config.training.eval_steps = "steps", 5
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


def judged_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run on 23 judged answers, of which a rank sees other ones with the prompts of its own."""
    config = config_of("kto", folder, per_device_train_batch_size=1, max_steps=6, num_train_epochs=2, **training)
    config.data.train.datasets[0].sample_count = 23
    return config


def eva_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run of an adapter that begins with the inputs of its layers, on all ranks with the same."""
    config = sft_config(folder, use_peft=True, **training)
    config.peft.lora_init_weights, config.peft.peft_save_mode = "EVA", "MERGED"  # type: ignore[assignment]
    return config


def short_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run whose micro-batches of several rows do not fit on rank 1."""
    rows = training.pop("gradient_accumulation_steps")
    return tiny_config(folder, num_rows=27, per_device_train_batch_size=rows, max_steps=4,
                       gradient_accumulation_steps=1, **training)  # fmt: skip


def trl_config(folder: Path, **training: Any) -> TrainingConfig:
    return sft_config(folder, trainer_type="TRL_SFT", **training)


def hf_config(folder: Path, **training: Any) -> TrainingConfig:
    return sft_config(folder, trainer_type="HF", **training)


def poisoned_config(folder: Path, **training: Any) -> TrainingConfig:
    """Returns a run of which a row of one rank has a loss that is not finite."""
    save_tiny_model(folder / "model", tie_word_embeddings=False)
    return poisoned(folder, (POISONED_LINE,), trainer_type="TRL_SFT", per_device_train_batch_size=1, **training)


CONFIGS: dict[str, Callable[..., TrainingConfig]] = {
    "sft": sft_config, "pairs": pairs_config, "judged": judged_config, "short": short_config, "trl": trl_config,
    "hf": hf_config, "trl pairs": trl_pairs_config, "eva": eva_config,
}  # fmt: skip
POISONED_LINE = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder in which two ranks have trained each config, with a checkpoint at step 6."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, configure in CONFIGS.items():
        (folder / name).mkdir()
        config = configure(
            folder / name, gradient_accumulation_steps=2, output_dir=str(folder / name / "two"), save_steps=6
        )
        config.to_yaml(folder / f"{name}.yaml")
    (folder / "poisoned").mkdir()
    poisoned_config(folder / "poisoned", gradient_accumulation_steps=2).to_yaml(folder / "poisoned.yaml")
    command = [str(DRIVER), *(f"{free_port()}:{folder / name}.yaml" for name in (*CONFIGS, "poisoned"))]
    (main, text), (other, silence) = run_ranks(2, *command, folder=Path(__file__).parents[2])
    assert (main, other) == (0, 0), text + silence
    assert "step 10/10" in text
    assert "Plan" not in silence, "only the main rank prints"
    assert f"chats.jsonl:{POISONED_LINE}" in text
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_one(folder: Path, name: str) -> None:
    train(CONFIGS[name](folder / name, gradient_accumulation_steps=4))
    expected, steps = records(folder / name / "out"), records(folder / name / "two")
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=1e-6, abs=5e-7)
    for key in ("grad_norm", "num_tokens", "num_target_tokens", *(key for key in expected[0] if "/" in key)):
        # A step without bad answers has no metric of them.
        values = [step.get(key, 0.0) for step in steps]
        assert values == pytest.approx([step.get(key, 0.0) for step in expected], rel=1e-5, abs=2e-5), key
    assert_close(weights(folder / name / "two"), weights(folder / name / "out"))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["sft", "pairs", "trl", "hf"])
def test_a_checkpoint_of_two_ranks_goes_on_in_one(folder: Path, name: str) -> None:
    two = folder / name / "two"
    before = weights(two)
    (two / "model.safetensors").unlink()
    shutil.rmtree(two / "checkpoint-10", ignore_errors=True)  # which other trainers save at the end
    config = CONFIGS[name](folder / name, gradient_accumulation_steps=4, output_dir=str(two), save_steps=6)
    config.training.try_resume_from_last_checkpoint = True
    train(config)
    assert [step["step"] for step in records(two)[-4:]] == [7, 8, 9, 10]
    assert_close(weights(two), before)


def test_a_loss_that_is_not_finite_on_one_rank_stops_other_trainers_on_all(folder: Path) -> None:
    out = folder / "poisoned" / "out"
    steps = records(out)
    assert all(math.isfinite(step["loss"]) for step in steps)
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{len(steps)}"]
    assert not (out / "model.safetensors").exists()


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", ["TRL_SFT", "HF"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(tmp_path: Path, trainer: str) -> None:
    tiny_config(tmp_path, trainer_type=trainer, max_steps=100_000).to_yaml(tmp_path / "ranks.yaml")
    main, other = start_ranks(2, "-m", "oumi", "train", "-c", str(tmp_path / "ranks.yaml"), folder=tmp_path)
    try:
        wait_for_steps(tmp_path / "out")
        other.send_signal(signal.SIGTERM)
        texts = ["".join(rank.communicate(timeout=SECONDS)) for rank in (main, other)]
    finally:
        main.kill()
        other.kill()
    assert (main.returncode, other.returncode) == (75, 75), texts
    step = records(tmp_path / "out")[-1]["step"]
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert all(f"stopped after step {step} of" in text for text in texts)


def test_a_rank_that_cannot_train_stops_all(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, max_steps=2)
    config.to_yaml(tmp_path / "ranks.yaml")
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n')
    command = ("-m", "oumi", "train", "-c", str(tmp_path / "ranks.yaml"))
    (main, text), (other, message) = run_ranks(2, *command, folder=tmp_path)
    assert main == 65
    assert "the conversation is empty" in text
    assert other != 0
    assert "rank 1: stopped, since rank 0" in message
    assert "the conversation is empty" in message
    assert "Traceback" not in text + message


def test_ranks_with_different_plans_do_not_train(tmp_path: Path) -> None:
    config = tmp_path / "ranks.yaml"
    tiny_config(tmp_path, max_steps=2).to_yaml(config)
    config.write_text(re.sub(r"\n  seed: \d+\n", "\n  seed: ${oc.env:RANK}\n", config.read_text()))
    ranks = run_ranks(2, "-m", "oumi", "train", "-c", str(config), folder=tmp_path)
    for code, text in ranks:
        assert code == 2, text
        assert "ranks 0 and 1 would train different runs" in text
        assert "\n  seed: 0 -> 1\n" in text


def test_a_rank_whose_peer_is_killed_says_so(tmp_path: Path) -> None:
    tiny_config(tmp_path, max_steps=100_000).to_yaml(tmp_path / "ranks.yaml")
    main, other = start_ranks(2, "-m", "oumi", "train", "-c", str(tmp_path / "ranks.yaml"), folder=tmp_path)
    try:
        wait_for_steps(tmp_path / "out")
        other.kill()
        text = "".join(main.communicate(timeout=SECONDS))
    finally:
        main.kill()
        other.kill()
    assert main.returncode == 1
    assert "rank 0: stopped, since rank 1" in text
    assert "it was killed, or crashed" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", ["plan.json", ".new-model"])
def test_a_main_rank_that_cannot_write_stops_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    tiny_config(tmp_path, max_steps=2, save_final_model=True).to_yaml(tmp_path / "ranks.yaml")
    command = ("-m", "oumi", "train", "-c", str(tmp_path / "ranks.yaml"))
    (main, text), (other, message) = run_ranks(2, *command, folder=tmp_path)
    assert (main, other) == (74, 74), text + message
    assert "rank 1: stopped, since rank 0" in message
    assert "Traceback" not in text + message


def wait_for_steps(output_dir: Path) -> None:
    metrics = output_dir / "metrics.jsonl"
    deadline = time.monotonic() + SECONDS
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=tolerance, atol=tolerance, msg=name)
