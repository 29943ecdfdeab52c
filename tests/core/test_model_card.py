# SPDX-License-Identifier: Apache-2.0
"""The model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from oumi.core.train import train
from tests.runs import tiny_config


def card_of(folder: Path, name: str = "out", **training: Any) -> str:
    config = tiny_config(
        folder, max_steps=4, eval_strategy="steps", eval_steps=2, output_dir=str(folder / name), **training
    )
    config.data.validation.datasets = list(config.data.train.datasets)
    train(config)
    return (folder / name / "README.md").read_text()


def test_a_card_tells_data_settings_metrics_and_use(tmp_path: Path) -> None:
    text = card_of(tmp_path, run_name="My run", load_best_model_at_end=True)
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {"library_name": "transformers", "tags": ["oumi", "next-token"]}
    for words in (
        "# My_run", "Trained from `model`", "| train | `chats.jsonl` | 24 | 24 | 0 | 0 |", "| validation |",
        "- steps: 4 of 4, 4 rows each", "best eval_loss", "| best_step | 4 |", "| eval_perplexity |", "transformers 5.",
        "AutoModelForCausalLM",
    ):  # fmt: skip
        assert words in body, words
    assert str(tmp_path) not in text, "nothing of this machine"
    assert "trl " not in body


@pytest.mark.parametrize("training", [{"use_peft": True}, {"trainer_type": "HF"}])
def test_the_same_run_has_the_same_card(tmp_path: Path, training: dict[str, Any]) -> None:
    first = card_of(tmp_path / "a", **training) if (tmp_path / "a").mkdir() is None else ""
    (tmp_path / "b").mkdir()
    second = card_of(tmp_path / "b", **training)
    digests = [next(line for line in text.splitlines() if "digest" in line) for text in (first, second)]
    assert digests[0] != digests[1], "of paths, too"
    assert first.replace(digests[0], "") == second.replace(digests[1], "")
    assert ("library_name: peft" in first) == ("use_peft" in training)


def test_a_readme_of_the_user_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine\n")
    assert card_of(tmp_path) == "mine\n"
    assert "## Metrics" in (out / "MODEL_CARD.md").read_text()
    (out / "MODEL_CARD.md").write_text("mine, too\n")
    card_of(tmp_path)
    assert (out / "MODEL_CARD.md").read_text() == "mine, too\n"


def test_a_card_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    first = card_of(tmp_path)
    assert card_of(tmp_path, learning_rate=0.1) != first


def test_a_run_that_saves_no_model_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        card_of(tmp_path, save_final_model=False)
