# SPDX-License-Identifier: Apache-2.0
"""Law 3 for every way to draw rows: mixtures with shares, packed rows, streams, joined documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import TrainingConfig
from oumi.core.data.pipeline.mixture import Mixture
from oumi.core.datasets import DATASETS, BasePretrainingDataset
from oumi.core.errors import DataError
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.fork_server import run_python
from tests.laws.test_resume import assert_same_run
from tests.runs import build, losses, tiny_config
from tests.tiny import write_chats

DATASETS.register("tests/texts")(BasePretrainingDataset)
SPLITS: dict[str, dict[str, Any]] = {
    "weighted": {"shares": (0.7, 0.3), "pack": True, "mixture_strategy": "all_exhausted"},
    "streamed": {"stream": True},
    "streamed, weighted and packed": {"stream": True, "shares": (0.7, 0.3), "pack": True},
    "streamed and joined": {"stream": True, "dataset_name": "tests/texts"},
    "joined": {"dataset_name": "tests/texts"},
}

NUM_STEPS = {**dict.fromkeys(SPLITS, 20), "weighted": 32, "streamed, weighted and packed": 80}
"""So many that each goes through two epochs, or two blocks of packed rows."""


def config_of(folder: Path, kind: str, **training: Any) -> TrainingConfig:
    """Returns a run over two data sets of 24 and 40 rows, shuffled, drawn as `kind` says."""
    split = dict(SPLITS[kind])
    shares = split.pop("shares", (None, None))
    name = split.pop("dataset_name", "text_sft")
    datasets = []
    for i, (rows, share) in enumerate(zip((24, 40), shares, strict=True)):
        path = write_chats(folder / f"set-{i}.jsonl", rows)
        if name == "tests/texts":
            messages = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps({"text": chat[0]["content"]}) + "\n" for chat in messages))
        kwargs = {"seq_length": 48} if name == "tests/texts" else {}
        datasets.append(
            {
                "dataset_name": name,
                "dataset_path": str(path),
                "dataset_kwargs": kwargs,
                "mixture_proportion": share,
                "shuffle": True,
                "shuffle_buffer_size": 16,
            }
        )
    config = tiny_config(folder, max_steps=NUM_STEPS[kind], per_device_train_batch_size=4, **training)
    config.model.model_max_length = 128
    config.data.train = type(config.data.train).model_validate({"datasets": datasets, **split})
    return config


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("quarter", [2, *(pytest.param(quarter, marks=pytest.mark.slow) for quarter in (1, 3))])
def test_a_run_resumed_in_any_epoch_is_bitwise_the_uninterrupted_run(tmp_path: Path, kind: str, quarter: int) -> None:
    every = NUM_STEPS[kind] // 4
    train(config_of(tmp_path, kind, save_steps=every, output_dir=str(tmp_path / "whole")))
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert epochs[-1] >= 2, "the run goes through two epochs and more"
    step = quarter * every
    out = tmp_path / "again"
    checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
    train(config_of(tmp_path, kind, save_steps=every, output_dir=str(out), resume_from_checkpoint=checkpoint))
    assert losses(out) == losses(tmp_path / "whole")[step:]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "num_kills", "last_moment_s"),
    [("streamed", 3, 1.0), pytest.param("streamed, weighted and packed", 10, 2.5, marks=pytest.mark.slow)],
)
def test_kills_leave_a_streamed_run_bitwise_as_it_was(
    tmp_path: Path, kind: str, num_kills: int, last_moment_s: float
) -> None:
    shape = {"save_steps": 3, "save_total_limit": 2, "try_resume_from_last_checkpoint": True}
    uninterrupted = config_of(tmp_path, kind, **shape, output_dir=str(tmp_path / "whole"))
    killed = config_of(tmp_path, kind, **shape, output_dir=str(tmp_path / "killed"))
    train(uninterrupted)
    killed.to_yaml(tmp_path / "killed.yaml")
    driver = Path(__file__).with_name("kill_driver.py")
    result = run_python(str(driver), str(tmp_path / "killed.yaml"), "3", str(num_kills), str(last_moment_s))
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) >= num_kills // 3, "many attempts are killed while they train"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_stream_goes_on_without_reading_again_what_is_behind_it(tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", 4000)
    before = chats.read_bytes()

    def streamed(out: str, **training: Any) -> TrainingConfig:
        config = tiny_config(tmp_path, max_steps=100, save_steps=90, output_dir=str(tmp_path / out), **training)
        config.data.train.stream = True
        return config

    train(streamed("whole"))
    checkpoint = tmp_path / "whole" / "checkpoint-90"
    state = json.loads((checkpoint / "state" / "progress.json").read_text())["loader"]
    behind = state["parts"][0]["stream"]["place"]["byte"]
    assert behind > 50_000
    lines = before[:behind].splitlines(keepends=True)
    first = sum(len(line) for line in lines[:64])  # which the check before the first step reads
    chats.write_bytes(before[:first] + b"?" * (behind - first) + before[behind:])
    train(streamed("again", resume_from_checkpoint=str(checkpoint)))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[90:]


def test_a_mixture_with_shares_has_them_within_one_percent_on_any_number_of_ranks(tmp_path: Path) -> None:
    trainer = build(config_of(tmp_path, "weighted"), NativeTrainer)
    mixture = Mixture(trainer._data.train.parts)  # type: ignore[union-attr]  # it is not streamed
    names = [Path(mixture[i].source.path).stem for i in range(len(mixture))]
    assert abs(names.count("set-0") / len(names) - 0.7) < 0.01


def test_a_stream_without_a_row_to_train_on_is_reported_before_the_first_step(tmp_path: Path) -> None:
    config = config_of(tmp_path, "streamed and joined")
    config.data.train.datasets[1].dataset_kwargs = {"seq_length": 128}
    Path(config.data.train.datasets[1].dataset_path or "").write_text('{"text": "short"}\n')
    with pytest.raises(DataError, match=r"set-1\.jsonl has no rows to train on; do its documents fill one row"):
        train(config)


def test_the_share_of_empty_places_of_a_packed_stream_is_reported(tmp_path: Path) -> None:
    config = config_of(tmp_path, "streamed, weighted and packed")
    config.training.max_steps = 4
    train(config)
    log = (tmp_path / "out" / "logs" / "rank_0000.log").read_text()
    assert re.search(r"packed into \d+ rows so far, \d+\.\d% empty", log)
