# SPDX-License-Identifier: Apache-2.0
"""The model of an output directory is the old one or the new one, whatever happens while it is replaced."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import pytest
import transformers

from oumi.core.checkpoint.export import finish_export, foreign_model_files, has_export, publish_model
from oumi.core.checkpoint.store import clear_unfinished
from oumi.core.errors import StorageError

FULL = {"config.json": "full", "model-00001-of-00002.safetensors": "1", "model-00002-of-00002.safetensors": "2"}
ADAPTER = {"adapter_config.json": "lora", "adapter_model.safetensors": "a", "base/config.json": "b", "vocab.txt": "v"}
MERGED = {"config.json": "merged", "model.safetensors": "m", "adapter/adapter_config.json": "lora"}
MODELS = (FULL, ADAPTER, MERGED)
OTHERS = {
    "checkpoint-3/config.json": "checkpoint",
    "base/notes.txt": "mine",
    "metrics.jsonl": "{}",
    "README.md": "mine",
    "logs/rank_0000.log": "log",
}
BESIDE = (
    "tokenizer.json", "chat_template.jinja", "pytorch_model.bin", "pytorch_model.bin.index.json", "tekken.json",
    "additional_chat_templates/tool_use.jinja", "sentencepiece.bpe.model", "modeling_x.py", "image_processing_x.py",
    "model.safetensors.index.fp16.json", "qformer_tokenizer/tokenizer_config.json", "custom_generate/generate.py",
)  # fmt: skip
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open"}
"""Audit events of changes to the file system."""


def writer(files: dict[str, str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return write


def model_in(folder: Path) -> dict[str, str]:
    """Returns the files below a folder but for those of OTHERS and the list of the export."""
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert {name: files.pop(name) for name in OTHERS} == OTHERS
    files.pop("model_files.json", None)
    return files


def loads_as(files: dict[str, str]) -> set[str]:
    return {text for name, text in files.items() if name in ("config.json", "adapter_config.json")}


class KilledError(BaseException):
    """Ends what a process does to the file system at one moment, as SIGKILL does."""


class Killer:
    """Lets no change of the file system below a folder happen after the first `num_changes`."""

    def __init__(self) -> None:
        self.folder, self.num_changes, self.is_spared = "", 0, False
        sys.addaudithook(self._check)

    @contextmanager
    def after(self, num_changes: int, folder: Path) -> Iterator[None]:
        self.folder, self.num_changes = str(folder), num_changes
        try:
            yield
            self.is_spared = True
        except KilledError:
            self.is_spared = False
        finally:
            self.folder = ""

    def _check(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder and event in CHANGES and self.folder in str(arguments[0]):
            self.num_changes -= 1
            if self.num_changes < 0:
                raise KilledError


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


@pytest.mark.parametrize("old", MODELS)
@pytest.mark.parametrize("new", MODELS)
def test_a_new_model_leaves_nothing_of_the_old_one_and_all_else_untouched(
    tmp_path: Path, old: dict[str, str], new: dict[str, str]
) -> None:
    writer(OTHERS)(tmp_path)
    for files in (old, new):
        publish_model(tmp_path, writer(files))
        assert model_in(tmp_path) == files
    assert has_export(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert not has_export(tmp_path)
    assert not foreign_model_files(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.sample(1)
@pytest.mark.parametrize(("old", "new"), [(FULL, ADAPTER), (ADAPTER, MERGED), (MERGED, FULL)])
def test_a_kill_at_any_moment_leaves_the_old_model_the_new_one_or_one_that_is_finished_later(
    tmp_path: Path, killer: Killer, old: dict[str, str], new: dict[str, str]
) -> None:
    outcomes, seen, is_last = [], [], False
    while not is_last:
        num_changes = len(seen)
        folder = tmp_path / str(num_changes)
        writer(OTHERS)(folder)
        publish_model(folder, writer(old))
        with killer.after(num_changes, folder):
            publish_model(folder, writer(new))
        is_last = killer.is_spared
        # Before anything is repaired, a loader sees one of the two models as a whole, or none.
        seen.append(model_in_root(folder))
        assert not loads_as(seen[-1]) or seen[-1] in (old, new)
        with killer.after(num_changes % 7, folder):  # the next process is killed as well
            finish_export(folder)
        assert not loads_as(model_in_root(folder)) or model_in_root(folder) in (old, new)
        finish_export(folder)
        clear_unfinished(folder)
        outcomes.append(model_in(folder))
    assert outcomes[0] == old
    assert outcomes[-1] == seen[-1] == new
    assert all(outcome in (old, new) for outcome in outcomes)
    assert any(not loads_as(files) for files in seen)


def model_in_root(folder: Path) -> dict[str, str]:
    return {name: text for name, text in model_in(folder).items() if not name.startswith((".tmp-", ".new-model"))}


def test_the_old_model_is_unchanged_when_writing_fails(tmp_path: Path) -> None:
    publish_model(tmp_path, writer(FULL))

    def fail(folder: Path) -> None:
        writer(ADAPTER)(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        publish_model(tmp_path, fail)
    assert {path.name for path in tmp_path.iterdir()} == {*FULL, "model_files.json"}


@pytest.mark.parametrize("name", [*FULL, *ADAPTER, *BESIDE])
def test_a_file_that_loaders_read_and_no_run_exported_is_found(tmp_path: Path, name: str) -> None:
    publish_model(tmp_path, writer(MERGED))
    writer({**OTHERS, name: "mine"})(tmp_path)
    assert foreign_model_files(tmp_path) == ([] if name in MERGED else [name])


def test_every_name_of_the_installed_loaders_is_found(tmp_path: Path) -> None:
    names = {value for name, value in vars(transformers.utils).items() if re.fullmatch(r"[A-Z_]+_(NAME|FILE)", name)}
    names = {name for name in names if "." in name} - {transformers.utils.MODEL_CARD_NAME}
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES = {(.*?)}", path.read_text(), re.DOTALL):
            names |= set(re.findall(r': "([^"]+\.[^"]+)"', table))
    names |= {peft.utils.constants.WEIGHTS_NAME, peft.utils.constants.SAFETENSORS_WEIGHTS_NAME}
    assert len(names) > 30
    writer(dict.fromkeys(names, "mine"))(tmp_path)
    assert foreign_model_files(tmp_path) == sorted(names)


@pytest.mark.parametrize("text", ['["../precious.txt", "/precious.txt", 3]', "{", "[1", '{"a": 1}', "7", "null"])
def test_a_list_that_is_no_list_of_files_below_deletes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model_files.json").write_text(text)
    publish_model(folder, writer(FULL))
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {*FULL, "model_files.json"}
