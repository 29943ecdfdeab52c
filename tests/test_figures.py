# SPDX-License-Identifier: Apache-2.0
"""The figures of a source, counted on one small enough to count by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import figures
from tests.row_trace import Recorder, Station, count_calls

TREE = {
    "__init__.py": "",
    "core/__init__.py": "",
    "core/errors.py": '''# SPDX-License-Identifier: Apache-2.0
"""Errors."""


def report(one_row, GivenRows):
    """Reports."""
    value = one_row  # the first, since its line is known
    # noqa: E501
    return _text(value)


def _text(value):
    return str(value)  # type: ignore[no-any-return]


def both(wanted):
    return _text(wanted) + _text("# no comment")
''',
    "core/train.py": """from typing import TYPE_CHECKING

import oumi
from oumi.core.errors import report

if TYPE_CHECKING:
    from oumi.core.data.rows import load


def train(trainer, kind):
    from oumi.core import errors

    if trainer == "TRL_SFT" or trainer in ["hf", "other"]:
        return {"oumi": report, "other": errors}
    match trainer:
        case "TRL_DPO":
            return "TRL_KTO"
    return kind in (TrainerType.HF, TrainerType.OUMI)
""",
    "core/data/__init__.py": "",
    "core/data/rows.py": '''from oumi.core.errors import report


class TrainerType:
    """Which trainer."""

    HF = "hf"
    """The names of a trainer are no decision here."""
    ALL = ("hf", "oumi")


def load():
    return report(1, 2)
''',
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Returns the folder of a package that was written for these tests."""
    folder = tmp_path / "src" / "oumi"
    for name, text in TREE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def modules(source: Path) -> list[figures.Module]:
    return figures.load_modules(source)


def test_files_and_rooms_are_counted(modules: list[figures.Module]) -> None:
    counts = figures.count_files(modules)
    assert counts["files"] == 6
    assert counts["lines"] == 17 + 18 + 13
    assert counts["lines of a file, median"] == 17
    assert counts["rooms (folders with Python files)"] == 3


def test_functions_and_those_of_a_single_use_are_counted(modules: list[figures.Module]) -> None:
    counts = figures.count_functions(modules)
    assert counts["functions"] == 5
    assert counts["functions per 1,000 lines"] == round(5000 / 48, 2)
    assert counts["lines of a function, max"] == 9
    assert counts["used once, % of functions"] == 0  # `report` is used twice, `_text` three times, the others never


def test_a_private_helper_of_a_single_use_is_counted(tmp_path: Path) -> None:
    (tmp_path / "oumi").mkdir()
    (tmp_path / "oumi" / "a.py").write_text("def _sum(a):\n    return a\n\n\ndef total(a):\n    return _sum(a)\n")
    counts = figures.count_functions(figures.load_modules(tmp_path / "oumi"))
    assert counts["used once, % of functions"] == counts["used once and private, % of functions"] == 50


def test_a_comment_says_something_and_is_no_directive(modules: list[figures.Module]) -> None:
    counts = figures.count_comments(modules)
    assert counts["lines with a comment"] == 1
    assert counts["lines of docstrings, % of lines"] == round(100 * 4 / 48, 2)


@pytest.mark.parametrize(
    ("comment", "num_comments"),
    [
        ("# noqa: B008", 0),
        ("# noqa", 0),
        ("# type: ignore", 0),
        ("# type: ignore[misc]  # torch leaves it untyped", 1),
        ("# fmt: skip", 0),
        ("#", 0),
        ("# the order matters", 1),
    ],
)
def test_a_directive_counts_where_a_reason_follows(tmp_path: Path, comment: str, num_comments: int) -> None:
    (tmp_path / "a.py").write_text(f"a = 1  {comment}\n")
    assert figures.count_comments(figures.load_modules(tmp_path))["lines with a comment"] == num_comments


def test_vague_words_are_counted_within_identifiers(modules: list[figures.Module]) -> None:
    counts = figures.count_vague_names(modules)
    vague = {name.strip(): count for name, count in counts.items() if name.startswith("  ")}
    assert vague == {"one_row": 2, "wanted": 2, "GivenRows": 1}
    assert counts["vague, per 1,000 identifiers"] == round(5000 / counts["identifiers"], 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_row", {"one", "row"}),
        ("OneRow2", {"one", "row"}),
        ("_what", {"what"}),
        ("HTTPServer", {"http", "server"}),
        ("someone", {"someone"}),
    ],
)
def test_an_identifier_is_split_into_words(name: str, words: set[str]) -> None:
    assert figures.words_of(name) == words


def test_trainers_are_counted_where_a_decision_names_them(modules: list[figures.Module]) -> None:
    counts = figures.count_trainer_names(modules)
    assert counts == {"times": 6, "files": 1, "  core/train.py": 6}


def test_the_story_is_read_from_the_table(source: Path) -> None:
    assert figures.count_story(source) == {}
    page = source.parents[1] / "CONTRIBUTING.md"
    page.write_text("| 1 | `core/train.py` | the story | 7 |\n| 2 | `core/errors.py` | problems | 7 |\n| x | `y` |\n")
    assert list(figures.count_story(source).values()) == [2, 35]


def test_imports_within_functions_count_and_those_for_types_do_not(modules: list[figures.Module]) -> None:
    names = {module.name for module in modules}
    imports = {module.name: figures.imports_of(module, names) for module in modules}
    assert imports["oumi.core.train"] == {"oumi.core.errors"}
    assert figures.count_layers(modules) == {
        "imports from room to room": 1,
        "modules in a circle": 0,
        "rooms in a circle": 0,
    }


def test_a_circle_of_rooms_is_one_even_where_no_module_is_in_a_circle(source: Path) -> None:
    (source / "core" / "models").mkdir()
    (source / "core" / "models" / "load.py").write_text("from oumi.core.data.rows import load\n")
    (source / "core" / "data" / "loader.py").write_text("from oumi.core.models import load\n")
    counts = figures.count_layers(figures.load_modules(source))
    assert (counts["modules in a circle"], counts["rooms in a circle"]) == (0, 2)


def test_relative_imports_are_resolved(source: Path) -> None:
    (source / "core" / "data" / "loader.py").write_text("from . import rows\nfrom ..errors import report\n")
    modules = figures.load_modules(source)
    (loader,) = (module for module in modules if module.name == "oumi.core.data.loader")
    assert figures.imports_of(loader, {module.name for module in modules}) == {
        "oumi.core.data.rows",
        "oumi.core.errors",
    }


def test_two_sources_stand_in_two_columns(source: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", "--source", str(source), "--against", str(source / "core")])
    figures.main()
    files = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  files "))
    assert files.split() == ["files", "6", "5"]


def test_calls_are_recorded_only_while_a_row_is_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "trace_trainers/rows.py": """
import threading
from trace_data.lines import read, show, skip

def load_rows():
    work = threading.Thread(target=show)
    work.start()
    work.join()
    return [read() for _ in range(3)]

def other():
    return skip()
""",
        "trace_data/lines.py": "def read(): return 1\ndef show(): return read()\ndef skip(): return read()\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    from trace_trainers import rows  # type: ignore[import-not-found]

    recorder = Recorder(tmp_path, re.compile(r"trace_trainers/rows\.py:load_\w+"))
    recorder.start()
    try:
        rows.other()
        rows.load_rows()
    finally:
        recorder.stop()
    load = Station("trace_trainers/rows.py", "load_rows")
    read, show = (Station("trace_data/lines.py", name) for name in ("read", "show"))
    assert recorder.calls - {(load, load)} == {(load, read), (load, show), (show, read)}
    counts = count_calls(recorder.calls)
    assert (counts["rooms"], counts["modules"], counts["calls between rooms"]) == (2, 2, 2)
    assert counts["  trace_trainers -> trace_data"] == 2
