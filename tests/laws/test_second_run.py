# SPDX-License-Identifier: Apache-2.0
"""A second run in one directory leaves exactly its own model, or is refused before it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi.core.errors import OutputError
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import save_tiny_model

RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter": {"use_peft": True, "peft": {}},
    "merged": {"use_peft": True, "peft": {"peft_save_mode": "MERGED"}},
    "both": {"use_peft": True, "peft": {"peft_save_mode": "ADAPTER_AND_BASE_MODEL"}},
    "another model": {"model": "other"},
    "another trainer": {"trainer_type": "TRL_SFT"},
}
RECORDS = ("run.json", "README.md", "config.yaml", "plan.json", "environment.json", "data_report.json", "logs")
"""Files that say how a run went, not what it trained."""


def run_in(folder: Path, output_dir: Path, run: str) -> None:
    """Trains a run of RUNS, whose models are in a folder."""
    settings = dict(RUNS[run])
    peft, model = settings.pop("peft", {}), settings.pop("model", "model")
    config = tiny_config(folder, max_steps=2, learning_rate=1e-2, output_dir=str(output_dir), **settings)
    config.model.model_name = str(folder / model)
    for key, value in peft.items():
        setattr(config.peft, key, value)
    train(config)


def exported_files(output_dir: Path) -> dict[str, bytes]:
    """Returns the files below an output directory but for the records of its run."""
    paths = {path.relative_to(output_dir): path for path in output_dir.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in paths.items()
        if name.parts[0] not in RECORDS and not name.parts[0].startswith((".lock", "telemetry", "metrics"))
    }


@pytest.fixture(scope="module")
def first_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a function from the name of a run to a directory in which it was the only one."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_model(folder / "other", num_hidden_layers=1, hidden_size=32)
    (folder / "other" / "chat_template.jinja").unlink()  # its tokenizer has fewer files

    def first(run: str) -> Path:
        if not (folder / run).exists():
            run_in(folder, folder / run, run)
        return folder / run

    return first


@pytest.mark.sample(6)
@pytest.mark.parametrize("second", RUNS)
@pytest.mark.parametrize("first", RUNS)
def test_a_second_run_leaves_the_files_that_it_leaves_in_an_empty_directory(
    tmp_path: Path, first_runs: Callable[[str], Path], first: str, second: str
) -> None:
    alone = first_runs(second)
    shutil.copytree(first_runs(first), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run_in(alone.parent, tmp_path / "out", second)
    files = exported_files(tmp_path / "out")
    assert files.pop("notes.txt") == b"mine"
    assert files.keys() == exported_files(alone).keys()
    assert files == exported_files(alone)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json", "tokenizer.json", "base/config.json"])
def test_a_directory_with_a_model_of_other_origin_is_refused_before_it_trains(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(OutputError, match=f"files of a model that no run exported there.*: {name}. Move them"):
        train(tiny_config(tmp_path))
    assert path.read_text() == "{}"
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("place", ["", "base", "adapter"])
def test_a_run_does_not_replace_the_model_that_it_trains(tmp_path: Path, place: str) -> None:
    config = tiny_config(tmp_path, use_peft=True, max_steps=1)
    save_tiny_model(tmp_path / "out" / place)
    config.model.model_name = str(tmp_path / "model" / ".." / "out" / place)
    before = exported_files(tmp_path / "out")
    with pytest.raises(OutputError, match=r"holds model\.model_name, which the run would replace"):
        train(config)
    assert exported_files(tmp_path / "out") == before


def test_a_run_that_saves_no_model_is_not_mistaken_for_an_earlier_one(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, max_steps=1))
    with pytest.raises(OutputError, match=r"model of an earlier run.*save_final_model"):
        train(tiny_config(tmp_path, max_steps=1, save_final_model=False))
