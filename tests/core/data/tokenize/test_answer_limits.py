# SPDX-License-Identifier: Apache-2.0
"""`max_prompt_length` and `max_completion_length`: what is kept of a prompt and of its answers, and that it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.laws.test_preference import config_of
from tests.runs import build
from tests.tiny import write_judged, write_pairs

LIMITS = {"max_prompt_length": 20, "max_completion_length": 6}


@pytest.mark.parametrize(("name", "write"), [("dpo", write_pairs), ("kto", write_judged)])
def test_the_end_of_the_prompt_and_the_beginning_of_the_answer_are_kept(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    whole = build(config_of(name, tmp_path / "whole"), NativeTrainer).run.loader.rows
    config = config_of(name, tmp_path / "cut")
    config.training.trainer_kwargs = {**config.training.trainer_kwargs, **LIMITS}
    rows = build(config, NativeTrainer).run.loader.rows
    for i in range(len(rows)):
        for short, long in zip(rows[i].documents(), whole[i].documents(), strict=True):
            first = int(long.is_target.argmax())
            assert short.tokens.tolist() == long.tokens[max(first - 20, 0) : first + 6].tolist()
            assert short.is_target.tolist() == long.is_target[max(first - 20, 0) : first + 6].tolist()
    report = json.loads((tmp_path / "cut" / "out" / "data_report.json").read_text())["train"][0]
    num_cut = sum(len(whole[i].tokens) - len(rows[i].tokens) for i in range(len(rows)))
    assert report["tokens"]["cut"] == num_cut > 0
    assert report["remarks"] == {"longer than max_prompt_length or max_completion_length, so it was cut": len(rows)}


def test_answers_that_differ_beyond_the_limit_alone_are_rejected(tmp_path: Path) -> None:
    config = config_of("dpo", tmp_path)
    rows = [{"prompt": "p", "chosen": "same" + "x" * i, "rejected": "same" + "y" * i} for i in (1, 5)]
    Path(config.data.train.datasets[0].dataset_path or "").write_text("\n".join(map(json.dumps, rows)))
    config.training.trainer_kwargs = {**config.training.trainer_kwargs, "max_completion_length": 4}
    with pytest.raises(Exception, match="the answers are the same within max_completion_length"):
        train(config)


@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_a_limit_is_a_positive_whole_number(tmp_path: Path, value: Any) -> None:
    from oumi.core.plan.refusals import refusals

    config = config_of("dpo", tmp_path)
    config.training.trainer_kwargs = {"max_prompt_length": value}
    assert [problem.key for problem in refusals(config)] == ["training.trainer_kwargs.max_prompt_length"]
