# SPDX-License-Identifier: Apache-2.0
"""The model in the root of an output directory, which replaces that of an earlier run as a whole. Imports no torch.

An export is written to a folder, and a rename marks it as complete. Then its files take the place of those that the
last export listed. A process that is killed in between leaves no config in the root, so that nothing loads, and the
next run finishes the export.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath

from oumi.core.checkpoint.store import UNFINISHED, apply_umask
from oumi.core.system.filesystem import replace, storage_errors, sync

_LIST = "model_files.json"
_STAGED = ".new-model"
_CONFIGS = ("config.json", "adapter_config.json")
"""Without these, no library loads a model or an adapter."""
_READ_BY_LOADERS = (
    *_CONFIGS, "base/config.json", "adapter/adapter_config.json", "generation_config.json",
    "*.safetensors", "*.safetensors.index*.json", "pytorch_model*.bin*", "adapter_model.bin",
    # Tokenizers, by the names of all families; any *.model is taken for the vocabulary of SentencePiece.
    "tokenizer*", "*_tokenizer/tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "vocab-*.json",
    "*_vocab.json", "merges.txt", "*.model", "*.spm", "*.tokenizer", "*tekken*.json", "bpe.codes", "dict.txt",
    "word_*.json", "byte_maps.json", "emoji.json", "normalizer.json",
    "chat_template.*", "additional_chat_templates/*.jinja", "*processor_config.json", "audio_tokenizer_config.json",
    # Code of models from the Hub, as it is named there.
    "modeling_*.py", "configuration_*.py", "tokenization_*.py", "processing_*.py", "image_processing_*.py",
    "video_processing_*.py", "feature_extraction_*.py", "custom_generate/*.py",
)  # fmt: skip
"""Patterns of the files that `from_pretrained` or PEFT may read from a directory."""


def publish_model(output_dir: Path, write: Callable[[Path], None]) -> None:
    """Writes a model into an output directory, in place of the one that an earlier run exported.

    Args:
        output_dir: The directory; its other files are unchanged.
        write: Writes the model into the directory that is its argument.

    Raises:
        StorageError: Disk full, or another failure of the file system; the earlier model is unchanged.
    """
    unfinished = output_dir / f"{UNFINISHED}model-{os.getpid()}"
    with storage_errors(output_dir):
        finish_export(output_dir)
        try:
            unfinished.mkdir(parents=True)
            write(unfinished)
            apply_umask(unfinished)
            paths = [path for path in unfinished.rglob("*") if path.is_file()]
            names = sorted(path.relative_to(unfinished).as_posix() for path in paths)
            (unfinished / _LIST).write_text(json.dumps(names, indent=1) + "\n")
            for path in [*paths, unfinished / _LIST, *{path.parent for path in paths}]:
                sync(path)
            unfinished.rename(output_dir / _STAGED)
        except BaseException:  # also KeyboardInterrupt: a model can be large
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        finish_export(output_dir)


def finish_export(output_dir: Path) -> None:
    """Moves a complete export to its place, also one whose process was killed while it did so."""
    staged = output_dir / _STAGED
    if (staged / _LIST).exists():
        _move(staged, output_dir)
    shutil.rmtree(staged, ignore_errors=True)


def has_export(output_dir: Path) -> bool:
    """Returns True if a directory has weights that a run exported."""
    return any((output_dir / name).exists() for name in _listed(output_dir) if name.endswith(".safetensors"))


def foreign_model_files(output_dir: Path) -> list[str]:
    """Returns the files of a model in a directory that no run exported there; they would be mixed with an export."""
    paths = {path for pattern in _READ_BY_LOADERS for path in output_dir.glob(pattern) if path.is_file()}
    return sorted({path.relative_to(output_dir).as_posix() for path in paths} - _listed(output_dir))


def _move(staged: Path, output_dir: Path) -> None:
    """Replaces the files of the last export by the staged ones, then its list; repeatable after a kill."""
    names, old_names = _listed(staged), _listed(output_dir)
    # Configs are deleted first and come last, the root's at the very end, so that nobody loads a mixture of two models.
    for name in sorted(old_names, key=_order, reverse=True):
        # A name of both that is no longer staged is already the new file.
        if name not in names or (staged / name).exists():
            (output_dir / name).unlink(missing_ok=True)
    for name in sorted(names, key=_order):
        if (staged / name).exists():
            (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
            replace(staged / name, output_dir / name)
    for folder in {(output_dir / name).parent for name in old_names | names} - {output_dir}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        elif folder.is_dir():
            sync(folder)
    replace(staged / _LIST, output_dir / _LIST)
    sync(output_dir)


def _listed(folder: Path) -> set[str]:
    """Returns the files of the export in a folder, relative to it; nothing if there is none."""
    try:
        names = json.loads((folder / _LIST).read_text())
    except (FileNotFoundError, ValueError):
        return set()
    # These files may be deleted, so no name may lead out of the folder.
    listed = names if isinstance(names, list) else []
    return {name for name in listed if isinstance(name, str) and _is_below(PurePath(name))}


def _is_below(path: PurePath) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def _order(name: str) -> tuple[bool, int]:
    """Returns the place of a file in the order in which a model appears."""
    path = PurePath(name)
    return path.name in _CONFIGS, -len(path.parts)
