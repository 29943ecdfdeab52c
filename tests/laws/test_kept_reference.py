# SPDX-License-Identifier: Apache-2.0
"""The law of a reference that is computed before the training: every step is that of a reference beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.engine.gradients import like_largest
from oumi.core.methods.kept_log_probs import KeptLogProbs
from oumi.core.plan.refusals import refusals
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.laws.test_preference import BETA, dpo_config
from tests.runs import build, records
from tests.tiny import save_tiny_model

KEPT = {"beta": BETA, "precompute_ref_log_probs": True}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder of kept log-probabilities, empty at first."""
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reference"


def config_of(folder: Path, name: str, **training: Any) -> TrainingConfig:
    """Returns a run with validation pairs, in an output directory of its own."""
    config = dpo_config(folder, output_dir=str(folder / name), eval_strategy="steps", eval_steps=4, **training)
    config.data.validation.datasets = [config.data.train.datasets[0].model_copy()]
    return config


def assert_same(run: Path, other: Path) -> None:
    """Asserts that two runs measured the same in every step."""
    for ours, theirs in zip(records(run), records(other), strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("use_peft", [False, True])
def test_a_kept_reference_gives_the_steps_of_a_computed_one(tmp_path: Path, cache: Path, use_peft: bool) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "use_peft": use_peft, "learning_rate": 1e-2 if use_peft else 1e-3}
    beside = train(config_of(tmp_path, "beside", **settings))
    assert not cache.exists()
    kept = train(config_of(tmp_path, "kept", trainer_kwargs=KEPT, **settings))
    assert_same(tmp_path / "kept", tmp_path / "beside")
    assert kept.metrics["eval_loss"] == pytest.approx(beside.metrics["eval_loss"], rel=1e-4)
    (path,) = cache.iterdir()
    before = path.stat().st_mtime_ns
    train(config_of(tmp_path, "again", trainer_kwargs=KEPT, **settings))
    assert_same(tmp_path / "again", tmp_path / "kept")
    assert path.stat().st_mtime_ns == before, "it is read, not written again"


def test_a_resumed_run_has_the_reference_of_the_first_one(tmp_path: Path, cache: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "trainer_kwargs": KEPT, "learning_rate": 1e-2}
    train(config_of(tmp_path, "whole", **settings))
    train(config_of(tmp_path, "parts", save_steps=4, **settings))
    for path in (tmp_path / "parts").glob("*.safetensors"):
        path.unlink()
    shutil.rmtree(tmp_path / "parts" / "checkpoint-8")
    shutil.rmtree(cache)  # so that a copy of the model before training has to be loaded
    train(config_of(tmp_path, "parts", save_steps=4, try_resume_from_last_checkpoint=True, **settings))
    for ours, theirs in zip(records(tmp_path / "parts")[-4:], records(tmp_path / "whole")[-4:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_file_belongs_to_the_weights_and_the_rows(tmp_path: Path, cache: Path) -> None:
    def paths() -> set[Path]:
        build(config_of(tmp_path, f"out-{len(list(cache.glob('*')))}", trainer_kwargs=KEPT), NativeTrainer)
        return set(cache.iterdir())

    first = paths()
    pairs = tmp_path / "pairs.jsonl"
    config = config_of(tmp_path, "fewer", trainer_kwargs=KEPT)
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:12]))
    assert isinstance(build(config, NativeTrainer).run.method._reference, KeptLogProbs)
    assert len(set(cache.iterdir())) == 2, "other rows"
    shutil.rmtree(tmp_path / "model")
    save_tiny_model(tmp_path / "model", attention_bias=True)
    assert len(paths()) == 3, "another model"
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes())
    assert len(paths()) == 4, "weights that were written again"
    for path in first:  # a disk that was full, or a copy that broke off
        path.write_bytes(path.read_bytes()[:100])
        assert KeptLogProbs.read(path) is None


def test_a_cache_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("no directory")
    run = build(config_of(tmp_path, "out", trainer_kwargs=KEPT), NativeTrainer).run
    step = next(run.loader.from_step(0))
    assert run.method._reference(step[0]).sums().lt(0).all()
    # What the engine tries before the first step on a GPU.
    made_up = like_largest(LargestMicroBatch(64, 32), run.plan.method)
    assert run.method._reference(made_up).sums().eq(0).all()
    with pytest.raises(KeyError):
        run.method._reference(replace(made_up, sources=step[0].sources[:4]))


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    config = dpo_config(tmp_path, max_steps=4, trainer_kwargs=KEPT)
    config.data.train.stream = True
    assert any("precompute_ref_log_probs" in problem and "stream" in problem for problem in map(str, refusals(config)))
    config = dpo_config(tmp_path, trainer_kwargs={**KEPT, "reference_free": True})
    assert any("reference_free" in problem for problem in map(str, refusals(config)))
