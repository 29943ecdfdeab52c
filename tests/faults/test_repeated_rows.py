# SPDX-License-Identifier: Apache-2.0
"""T38: rows and ids that stand in the data more than once, and rows that are measured though they are trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi.core.configs import DatasetParams, TrainingConfig
from oumi.core.data.checks.duplicates import repeated_ids, repeated_rows, shared_rows
from oumi.core.data.sources import source as sources
from oumi.core.errors import DataError
from oumi.core.train import train
from oumi.core.types.example import Example, Source
from tests.runs import table_of, tiny_config


def row(question: str, answer: str = "b", **others: Any) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **others})


def write(path: Path, *rows: str) -> DatasetParams:
    path.write_text("\n".join(rows) + "\n")
    return DatasetParams(dataset_name=path.stem, dataset_path=str(path))


def config_of(folder: Path, *train_sets: DatasetParams, validation: DatasetParams | None = None) -> TrainingConfig:
    config = tiny_config(folder, max_steps=1, eval_strategy="epoch" if validation else "no")
    config.data.train.datasets = list(train_sets)
    config.data.validation.datasets = [validation] if validation else []
    return config


def duplicates_of(folder: Path) -> dict[str, Any]:
    duplicates: dict[str, Any] = json.loads((folder / "out" / "data_report.json").read_text())["duplicates"]
    return duplicates


@pytest.fixture
def planted(tmp_path: Path) -> TrainingConfig:
    """Returns a run on two files with two repeated rows, one repeated id, and a validation set that shares one row."""
    a = write(tmp_path / "a.jsonl", row("1"), row("2", id="x"), row("1"), row("3", id="x"), row("2", "c"))
    b = write(tmp_path / "b.jsonl", row("4", id="x"), row("3"), row("5", conversation_id=7))
    c = write(tmp_path / "c.jsonl", row("6"), row("5"), row("5", "other"))
    return config_of(tmp_path, a, b, validation=c)


def test_they_are_counted_warned_of_and_named(
    tmp_path: Path, planted: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="oumi"):
        train(planted)
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    assert duplicates_of(tmp_path) == {
        "train": {
            "rows": {"rows": 2, "first": [f"{a}:3 repeats {a}:1", f"{b}:2 repeats {a}:4 (id 'x')"]},
            "ids": {"rows": 1, "first": [f"{a}:4 has the id 'x' of {a}:2"]},
        },
        "validation": {
            "rows": {"rows": 0, "first": []},
            "ids": {"rows": 0, "first": []},
            "trained": {"rows": 1, "first": [f"{c}:2 is also {b}:3 (id '7')"]},
        },
    }
    assert f"data.train: rows that repeat another, token by token: 2\n  {a}:3 repeats {a}:1" in caplog.text
    assert f"data.train: rows with the id of another: 1\n  {a}:4 has the id 'x' of {a}:2" in caplog.text
    assert f"data.validation: rows that are in the training set, too: 1\n  {c}:2 is also {b}:3" in caplog.text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_they_stop_the_run_where_the_config_says_so(tmp_path: Path, planted: TrainingConfig, split: str) -> None:
    getattr(planted.data, split).on_duplicates = "ERROR"
    with pytest.raises(DataError) as stopped:
        train(planted)
    message = str(stopped.value)
    assert f"data.{split}: " in message
    assert ("that repeat another" in message) == (split == "train")
    assert ("are in the training set, too" in message) == (split == "validation")
    assert message.endswith("on_duplicates: WARN")
    assert duplicates_of(tmp_path)["train"]["rows"]["rows"] == 2
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_rows_without_repeats_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(str(i), id=str(i)) for i in range(9)]
    config = config_of(tmp_path, write(tmp_path / "a.jsonl", *rows), validation=write(tmp_path / "b.jsonl", row("x")))
    config.data.train.on_duplicates = config.data.validation.on_duplicates = "ERROR"  # type: ignore[assignment]
    train(config)
    assert "repeat another" not in caplog.text
    assert "training set" not in caplog.text


def test_the_parts_of_a_split_text_have_one_id_and_do_not_repeat_each_other(tmp_path: Path) -> None:
    text = json.dumps({"text": "a" * 2000, "id": "x"})
    config = config_of(tmp_path, write(tmp_path / "a.jsonl", text, text))
    train(config)
    duplicates = duplicates_of(tmp_path)["train"]
    assert duplicates["ids"]["rows"] == 1
    assert duplicates["rows"]["rows"] == 4  # each of the second row's parts


@pytest.mark.slow
def test_a_large_data_set_is_counted_when_all_of_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LARGE_BYTES", 1)
    config = config_of(tmp_path, write(tmp_path / "a.jsonl", row("1"), row("2"), row("1")))
    config.data.train.on_duplicates = "ERROR"  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"a\.jsonl:3 repeats"):
        train(config)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "p", "q"])), max_size=30), st.integers(0, 30))
def test_any_repeats_are_found(rows: list[tuple[int, str]], cut: int) -> None:
    examples = [
        Example(np.array([value, 9], dtype=np.int32), np.array([False, True]), Source("d", "f", i + 1, name or None))
        for i, (value, name) in enumerate(rows)
    ]
    first, second = table_of(examples[:cut]), table_of(examples[cut:])
    first_places: dict[int, int] = {}
    expected = []
    for i, (value, _) in enumerate(rows):
        if value in first_places:
            expected.append(
                f"f:{i + 1}{mark(rows[i])} repeats f:{first_places[value] + 1}{mark(rows[first_places[value]])}"
            )
        first_places.setdefault(value, i)
    duplicates = repeated_rows([table_of(examples)])
    assert (duplicates.num_rows, list(duplicates.listed)) == (len(expected), expected[:10])
    names = [name for _, name in rows if name]
    assert repeated_ids([table_of(examples)]).num_rows == len(names) - len(set(names))
    before = {value for value, _ in rows[:cut]}
    assert shared_rows([first], [second]).num_rows == sum(value in before for value, _ in rows[cut:])


def mark(kind: tuple[int, str]) -> str:
    return f" (id '{kind[1]}')" if kind[1] else ""


def test_rows_that_are_measured_may_be_forbidden_to_repeat_beside_a_stream(tmp_path: Path) -> None:
    repeated = write(tmp_path / "b.jsonl", row("1"), row("1"))
    config = config_of(tmp_path, write(tmp_path / "a.jsonl", row("1"), row("2")), validation=repeated)
    config.training.eval_strategy = "steps"
    config.data.train.stream = True
    train(config)
    assert duplicates_of(tmp_path)["validation"]["rows"]["rows"] == 1
    config.training.output_dir = str(tmp_path / "again")
    config.data.validation = type(config.data.validation).model_validate(
        {**config.data.validation.model_dump(), "on_duplicates": "ERROR"}
    )
    with pytest.raises(DataError, match=r"data\.validation: rows that repeat another, token by token: 1"):
        train(config)
