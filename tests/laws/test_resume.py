# SPDX-License-Identifier: Apache-2.0
"""Law 3: a run that was killed and started again is bitwise the run that was not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi.core.errors import ConfigError, DataError
from oumi.core.train import train
from tests.runs import losses, tiny_config, weights

_SAVING = {"save_steps": 3, "save_total_limit": 2, "try_resume_from_last_checkpoint": True}


def test_ten_kills_at_random_moments_leave_the_run_bitwise_as_it_was(tmp_path: Path) -> None:
    shape = {**_SAVING, "num_train_epochs": 40}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    killed = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "killed"))
    killed.to_yaml(tmp_path / "killed.yaml")
    driver = Path(__file__).with_name("kill_driver.py")
    command = [sys.executable, str(driver), str(tmp_path / "killed.yaml"), "7"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) >= 3, "most attempts are killed while they train"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".tmp-*"))


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adafactor"},
        {"optimizer": "sgd", "sgd_momentum": 0.9, "lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"use_peft": True},
        {"seed": 7, "enable_gradient_checkpointing": True},
    ],
)
def test_a_run_resumed_across_an_epoch_is_bitwise_the_whole_run(tmp_path: Path, training: dict[str, Any]) -> None:
    shape = {**training, "save_steps": 4, "lr_scheduler_type": training.get("lr_scheduler_type", "constant")}
    whole = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole"))
    whole.model.model_kwargs = {"attention_dropout": 0.1}  # so that the random generators matter
    train(whole)
    again = whole.model_copy(deep=True)
    again.training.output_dir = str(tmp_path / "again")
    again.training.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    train(again)
    name = "adapter_model.safetensors" if training.get("use_peft") else "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[4:]


def test_a_finished_run_is_told_complete_and_left_untouched(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **_SAVING)
    first = train(config)
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.suffix == ".safetensors"}
    second = train(config)
    assert second.steps == first.steps
    assert changed == {path: path.stat().st_mtime_ns for path in changed}


def test_another_learning_rate_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, **_SAVING))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.002"):
        train(tiny_config(tmp_path, **{**_SAVING, "learning_rate": 2e-3}))


def test_other_logging_goes_on(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, **{**_SAVING, "max_steps": 7}))
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({"run_id": json.loads((tmp_path / "out" / "run.json").read_text())["run_id"]})
    )
    assert train(tiny_config(tmp_path, **{**_SAVING, "max_steps": 7, "logging_steps": 1})).steps == 7


def test_other_rows_are_refused(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, **_SAVING))
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chats.read_text().replace("Quite sure", "Quite pure"))
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({"run_id": json.loads((tmp_path / "out" / "run.json").read_text())["run_id"]})
    )
    with pytest.raises(DataError, match="trained on other rows"):
        train(tiny_config(tmp_path, **_SAVING))


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "no manifest"])
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    shape = {**_SAVING, "num_train_epochs": 2}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    config = tiny_config(tmp_path, **shape)
    train(config)
    out = tmp_path / "out"
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    harm_checkpoint(newest, harm)
    (out / "run.json").write_text(json.dumps({"run_id": json.loads((out / "run.json").read_text())["run_id"]}))
    train(config)
    assert list(out.glob(f"broken-{newest.name}-*"))
    assert_same_run(out, tmp_path / "whole")


def harm_checkpoint(checkpoint: Path, harm: str) -> None:
    path = checkpoint / ("MANIFEST.json" if harm == "no manifest" else "state/optimizer.safetensors")
    content = bytearray(path.read_bytes())
    if harm in ("missing", "no manifest"):
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def assert_same_run(found: Path, wanted: Path) -> None:
    assert losses(found) == losses(wanted)
    ours, theirs = weights(found), weights(wanted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
