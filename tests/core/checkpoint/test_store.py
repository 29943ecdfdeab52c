# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is complete or absent, whatever happens while it is written, replaced or deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oumi.core.checkpoint.retention import keep_last
from oumi.core.checkpoint.store import (
    checkpoint_path,
    clear_unfinished,
    find_checkpoints,
    newest_good,
    publish,
    read_facts,
    seal,
)
from oumi.core.errors import StorageError


def save(output_dir: Path, step: int, text: str = "weights", run_id: str = "r") -> Path:
    target = checkpoint_path(output_dir, step)
    publish(target, lambda folder: write_numbers(folder, text), {"run_id": run_id, "step": step})
    return target


def write_numbers(folder: Path, text: str) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "numbers").write_text(text)


def test_a_checkpoint_has_its_facts_and_detects_a_changed_byte(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 3)
    assert read_facts(checkpoint) == {"run_id": "r", "step": 3}
    (checkpoint / "state" / "numbers").write_text("weightS")
    with pytest.raises(StorageError, match="numbers: the content has changed since it was saved"):
        read_facts(checkpoint)


def test_an_existing_directory_is_replaced_completely(tmp_path: Path) -> None:
    save(tmp_path, 3, "old")
    checkpoint = save(tmp_path, 3, "new")
    assert (checkpoint / "state" / "numbers").read_text() == "new"
    assert os.listdir(tmp_path) == ["checkpoint-3"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_is_in_the_way_of_a_checkpoint_is_replaced(tmp_path: Path, kind: str) -> None:
    output_dir, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    output_dir.mkdir()
    if kind == "file":
        (output_dir / "checkpoint-3").write_text("notes")
    else:
        (output_dir / "checkpoint-3").symlink_to(elsewhere)
    if kind == "link":
        elsewhere.mkdir()
    assert read_facts(save(output_dir, 3))["step"] == 3
    assert os.listdir(output_dir) == ["checkpoint-3"]
    assert elsewhere.exists() == (kind == "link"), "only the link is deleted"


def test_an_existing_directory_is_unchanged_when_writing_fails(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 3, "old")

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"No space left on device; .* MB are free there"):
        publish(checkpoint, fail, {})
    assert read_facts(checkpoint)["step"] == 3
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_a_kill_before_the_new_directory_is_in_place_restores_the_old(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 3, "old")
    checkpoint.rename(tmp_path / ".replaced-checkpoint-3")
    (tmp_path / ".tmp-checkpoint-3-99").mkdir()
    clear_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    assert read_facts(checkpoint)["step"] == 3


def test_a_kill_before_the_old_directory_is_deleted_keeps_the_new(tmp_path: Path) -> None:
    save(tmp_path, 3, "old").rename(tmp_path / ".replaced-checkpoint-3")
    unfinished = save(tmp_path / "elsewhere", 3, "new")
    unfinished.rename(tmp_path / "checkpoint-3")
    (tmp_path / "elsewhere").rmdir()
    clear_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "state" / "numbers").read_text() == "new"


def test_the_newest_intact_checkpoint_is_returned_and_broken_others_are_renamed(tmp_path: Path) -> None:
    for step in (2, 10, 30):
        save(tmp_path, step)
    save(tmp_path, 20, run_id="another")
    (tmp_path / "checkpoint-30" / "MANIFEST.json").unlink()
    newest = newest_good(tmp_path, "r")
    assert newest == (tmp_path / "checkpoint-10", {"run_id": "r", "step": 10})
    assert [step for step, _ in find_checkpoints(tmp_path)] == [2, 10, 20]
    assert (tmp_path / f"broken-checkpoint-30-{os.getpid()}").is_dir()
    assert newest_good(tmp_path, None) == (tmp_path / "checkpoint-20", {"run_id": "another", "step": 20})


def test_a_directory_of_another_trainer_is_complete_once_it_is_sealed(tmp_path: Path) -> None:
    write_numbers(tmp_path, "theirs")
    with pytest.raises(StorageError, match="incomplete, or not written by Oumi"):
        read_facts(tmp_path)
    seal(tmp_path, {"step": 1})
    assert read_facts(tmp_path) == {"step": 1}


@pytest.mark.parametrize(("kept", "left"), [(None, [1, 2, 3]), (2, [2, 3]), (5, [1, 2, 3])])
def test_the_last_checkpoints_are_kept(tmp_path: Path, kept: int | None, left: list[int]) -> None:
    saved = [save(tmp_path, step) for step in (1, 2, 3)]
    stranger = save(tmp_path, 9, run_id="another")
    assert keep_last(saved, kept) == saved[-len(left) :]
    assert [step for step, _ in find_checkpoints(tmp_path)] == [*left, 9]
    assert stranger.is_dir()
