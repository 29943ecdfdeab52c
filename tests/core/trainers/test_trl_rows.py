# SPDX-License-Identifier: Apache-2.0
"""Images, packed rows and streams under the trainers of TRL and transformers train as under our own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError, DataError, NotFiniteError
from oumi.core.inspect import gather_facts
from oumi.core.plan.plan import make_plan
from oumi.core.train import train
from oumi.core.trainers.trl import TrlTrainer
from oumi.core.trainers.trl_inputs import ModelInputs
from oumi.core.trainers.trl_rows import as_item
from tests.end_to_end.test_images import config_of as image_config
from tests.faults.test_not_finite import poisoned
from tests.laws.test_families import build as build_family
from tests.ranks import free_port, run_ranks
from tests.runs import build as build_trainer
from tests.runs import losses, records, tiny_config
from tests.tiny import save_tiny_model
from tests.tiny_vision import SAVERS

OTHERS = ["TRL_SFT", "HF"]
ANSWERS = "ALL_ASSISTANT_TURNS"


def compare(config: TrainingConfig, folder: Path, trainer: str) -> None:
    """Trains a run by our own trainer and by another one, and compares losses, norms of gradients and counts."""
    for name in ("OUMI", trainer):
        run = config.model_copy(deep=True)
        run.training.trainer_type = type(run.training.trainer_type)[name]
        run.training.output_dir = str(folder / name)
        train(run)
    ours, theirs = records(folder / "OUMI"), records(folder / trainer)
    for key in ("num_tokens", "num_target_tokens"):
        assert [step[key] for step in theirs] == [step[key] for step in ours], key
    assert theirs[0]["loss"] == pytest.approx(ours[0]["loss"], rel=1e-5)
    for key in ("loss", "grad_norm"):
        assert [step[key] for step in theirs] == pytest.approx([step[key] for step in ours], rel=1e-3), key


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("trainer", OTHERS)
def test_images_train_as_in_our_own_trainer(tmp_path: Path, kind: str, trainer: str) -> None:
    config = image_config(tmp_path, kind, max_steps=20)
    config.data.train.train_target = ANSWERS
    compare(config, tmp_path, trainer)


def packed(folder: Path, **training: Any) -> TrainingConfig:
    config = tiny_config(folder, **training)
    config.model.model_max_length = 256
    config.data.train.pack = True
    config.data.train.train_target = ANSWERS
    return config


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", OTHERS)
def test_packed_rows_train_as_in_our_own_trainer(tmp_path: Path, trainer: str) -> None:
    compare(packed(tmp_path, num_train_epochs=4), tmp_path, trainer)


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", OTHERS)
def test_a_stream_trains_as_in_our_own_trainer_and_resumes_exactly(tmp_path: Path, trainer: str) -> None:
    config = packed(tmp_path, max_steps=9, save_steps=4)
    config.data.train.stream = True
    config.data.train.datasets[0].shuffle = True
    compare(config, tmp_path, trainer)
    whole = losses(tmp_path / trainer)
    config.training.trainer_type = type(config.training.trainer_type)[trainer]
    config.training.output_dir = str(tmp_path / "again")
    config.training.resume_from_checkpoint = str(tmp_path / trainer / "checkpoint-4")
    train(config)
    assert losses(tmp_path / "again") == whole[4:]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / trainer / "model.safetensors"
    ).read_bytes()


def test_packed_documents_are_padded_rows_where_a_batch_cannot_be_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUMI_WITHOUT", "flat")
    compare(packed(tmp_path, num_train_epochs=1), tmp_path, "TRL_SFT")


@pytest.mark.parametrize("trainer", OTHERS)
def test_a_packed_document_sees_no_other_one(tmp_path: Path, trainer: str) -> None:
    inner = build_trainer(packed(tmp_path, trainer_type=trainer), TrlTrainer).inner
    batch = inner.seams.join(inner.seams.rows.train.group(0))
    first, *_ = batch.lengths
    other = batch.tokens.clone()
    other[:first] = other[:first].roll(3)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        inputs = inner._prepare_inputs(as_item(replace(batch, tokens=tokens)))
        assert inputs["input_ids"].shape == (1, len(tokens)), "flat"
        del inputs["labels"]
        with torch.no_grad():
            return inner.model(**inputs).logits[0]

    before, after = logits(batch.tokens), logits(other)
    assert not torch.equal(before[:first], after[:first])
    assert torch.equal(before[first:], after[first:])


def test_a_model_whose_documents_would_change_each_other_is_refused(tmp_path: Path) -> None:
    config = packed(tmp_path, trainer_type="TRL_SFT")
    plan = make_plan(config, gather_facts(config))
    with pytest.raises(ConfigError, match=r"data\.train\.pack: TRL_SFT .* deepseek_v32; trainer OUMI"):
        ModelInputs.build(plan, build_family("deepseek_v32"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("length", range(36, 72, 3))
@pytest.mark.parametrize("side", ["RIGHT", "LEFT"])
def test_no_length_of_rows_with_images_ends_the_run(tmp_path: Path, length: int, side: str) -> None:
    config = image_config(tmp_path, "llava", trainer_type="TRL_SFT", num_train_epochs=1)
    config.model.model_max_length = length
    config.data.train = type(config.data.train).model_validate(
        {**config.data.train.model_dump(), "truncation": side, "max_rejected_rows": 11}
    )
    train(config)
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out"))


def test_a_step_that_fails_leaves_the_position_of_the_stream_before_its_rows(tmp_path: Path) -> None:
    def position(lines: tuple[int, ...], name: str, step: int) -> Any:
        (tmp_path / name).mkdir()
        save_tiny_model(tmp_path / name / "model", tie_word_embeddings=False)
        config = poisoned(tmp_path / name, lines, trainer_type="HF", max_steps=step + 1, save_steps=step)
        train(streamed(config))
        return json.loads((tmp_path / name / "out" / f"checkpoint-{step}" / "train_state.json").read_text())["loader"]

    with pytest.raises(NotFiniteError, match="step 3: "):
        position((11,), "broken", 9)
    saved = json.loads((tmp_path / "broken" / "out" / "checkpoint-2" / "train_state.json").read_text())["loader"]
    assert saved["parts"][0]["given"] == position((), "whole", 2)["parts"][0]["given"] == 8


DRIVER = Path(__file__).parents[2] / "laws" / "ranks_driver.py"
RANK_CASES = {
    "images": lambda folder, **training: image_config(folder, "llava", **training),
    "images, recomputed": lambda folder, **training: image_config(
        folder, "gemma3", enable_gradient_checkpointing=True, **training
    ),
    "packed": packed,
    "stream": lambda folder, **training: streamed(packed(folder, **training)),
}


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_rows_however_they_are_started(tmp_path: Path, context: str) -> None:
    shape = {"trainer_type": "TRL_SFT", "num_train_epochs": 1}
    train(image_config(tmp_path, "llava", **shape))
    workers = {"dataloader_num_workers": 2, "trainer_kwargs": {"dataloader_multiprocessing_context": context}}
    train(image_config(tmp_path, "llava", **shape, **workers, output_dir=str(tmp_path / "workers")))
    assert losses(tmp_path / "workers") == losses(tmp_path / "out")


def test_an_image_that_is_gone_is_reported_by_a_worker_as_by_the_run(tmp_path: Path) -> None:
    trainer = build_trainer(image_config(tmp_path, "llava", trainer_type="HF", dataloader_num_workers=1), TrlTrainer)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"^\S+rows\.jsonl:\d+: \S+\.png: No such file or directory$"):
        trainer.train()


def streamed(config: TrainingConfig) -> TrainingConfig:
    config.data.train.stream = True
    return config


@pytest.mark.slow
@pytest.mark.parametrize("trainer", OTHERS)
def test_two_ranks_train_as_one(tmp_path: Path, trainer: str) -> None:
    shape = {"trainer_type": trainer, "per_device_train_batch_size": 1, "max_steps": 8, "save_steps": 5}
    arguments, pairs = [], {}
    for name, configure in RANK_CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        one = configure(folder, **shape, gradient_accumulation_steps=4, output_dir=str(folder / "one"))
        two = configure(folder, **shape, gradient_accumulation_steps=2, output_dir=str(folder / "two"))
        for config in (one, two):
            config.training.eval_strategy, config.training.eval_steps = "steps", 4
            config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
        train(one)
        two.to_yaml(folder / "two.yaml")
        arguments.append(f"{free_port()}:{folder / 'two.yaml'}")
        pairs[name] = (folder / "one", folder / "two")
    for rank in run_ranks(2, str(DRIVER), *arguments, folder=Path(__file__).parents[3]):
        assert rank[0] == 0, rank[1]
    for name, (one_rank, two_ranks) in pairs.items():
        for key in ("loss", "grad_norm", "num_tokens", "num_target_tokens"):
            expected = [step[key] for step in records(one_rank)]
            assert [step[key] for step in records(two_ranks)] == pytest.approx(expected, rel=1e-4), (name, key)
        assert evaluations(two_ranks) == pytest.approx(evaluations(one_rank), rel=1e-4), name


def evaluations(output_dir: Path) -> list[float]:
    lines = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    return [record["eval_loss"] for record in lines if "eval_loss" in record]
