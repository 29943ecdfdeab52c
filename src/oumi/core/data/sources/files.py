# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a path and opens them. Imports no torch."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from glob import glob
from pathlib import Path
from typing import BinaryIO, cast

from oumi.core.configs.data import COMPRESSED, FILE_SUFFIXES, is_pattern, pattern_of
from oumi.core.errors import DataError
from oumi.core.log import logger

_SPLIT_WORDS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
"""Words in a path that name a split, the same as on the Hub."""
_MAX_SHOWN = 5
_LOOKS_LIKE_DATA = re.compile(
    r"^part-\d+$|\.(?:jsonl?|ndjson|parquet|arrow|csv|tsv|txt|xlsx?|pkl|tar)(?:\.\w{1,5})?$|\.(?:zip|tgz)$"
)
"""Names of files, in lower case, that a user may take for data; only some of these formats are read."""


class BrokenFileError(DataError):
    """A compressed file that is truncated or invalid."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason  # without the path, so that a reader can put `path:line` before it


def files_of(path: Path, split: str) -> list[Path]:
    """Returns the data files of a path, sorted: a file itself, the matches of a pattern, or those of a directory.

    Of a directory, only the files that belong to `split` are returned. If no file name contains a split, all are.

    Raises:
        DataError: There is no data file, or none of `split`.
    """
    is_directory = path.is_dir()
    if is_pattern(str(path)):
        # Like a shell, it does not match hidden files, such as the `._*` that macOS writes.
        files = [file for file in map(Path, glob(pattern_of(str(path)), recursive=True)) if file.is_file()]
    elif is_directory:
        found = sorted(_files_below(path))
        files = [file for file in found if format_of(file)]
        others = [file for file in found if not format_of(file) and _LOOKS_LIKE_DATA.search(file.name.lower())]
        if files and others:
            _log_once(
                f"{path}: {len(others)} of {len(found)} files are left out, since their formats are not read: "
                f"{_names(path, others)}"
            )
    else:
        return [path]
    if not files:
        raise DataError(f"{path}: no data file; expected a name that ends in {', '.join(FILE_SUFFIXES)}")
    files.sort()  # the order of a directory differs between file systems
    return _files_of_split(path, files, split) if is_directory else files


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and its subfolders, also linked ones; each folder once."""
    visited = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link to a folder above would never end
            folders.clear()
            continue
        visited.add(real)
        # Tools keep copies of data in hidden folders, such as `.ipynb_checkpoints`.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith(".") and Path(place, name).is_file())


def _files_of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Returns the files of a folder that belong to a split, and logs which do not."""
    splits = {file: _split_of(file.relative_to(folder)) for file in files}
    available = sorted(set(filter(None, splits.values())))
    requested = _split_of(Path(split))
    if not available:
        if requested != "train":
            _log_once(f"{folder}: no file name contains a split, so all files are read for split '{split}'")
        return files
    matching = [] if requested is None else [file for file in files if splits[file] == requested]
    if not matching:
        raise DataError(f"{folder}: no file of split '{split}'; the file names contain {', '.join(available)}")
    if others := [file for file in files if splits[file] is None]:
        _log_once(
            f"{folder}: {len(others)} of {len(files)} files are left out, since only the names of others contain "
            f"'{requested}': {_names(folder, others)}"
        )
    return matching


def _names(folder: Path, files: list[Path]) -> str:
    """Returns the names of the first files."""
    names = ", ".join(str(file.relative_to(folder)) for file in files[:_MAX_SHOWN])
    return names + (", ..." if len(files) > _MAX_SHOWN else "")


@cache
def _log_once(message: str) -> None:
    # The files of a data set are looked for several times in a run.
    logger.warning(message)


def _split_of(path: Path) -> str | None:
    """Returns the split that a path names, None if it names none.

    Only whole words count: `my_train.jsonl` is of split `train`, `contest.jsonl` of none.
    """
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((split for split, names in _SPLIT_WORDS.items() if any(name in words for name in names)), None)


def format_of(path: Path) -> str | None:
    """Returns the suffix of a data file in lower case, without `.gz` or `.zst`; None for any other file."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = path.with_suffix("").suffix.lower()
    return suffix if suffix in FILE_SUFFIXES else None


def check_file(path: Path) -> str:
    """Returns the format of a file (see `format_of`); raises DataError if it is missing, empty or of another format."""
    if not path.exists():  # before its name, which may lack the suffix by mistake
        raise DataError(f"{path}: no such file")
    suffix = format_of(path)
    if suffix is None:
        raise DataError(f"{path}: unknown file format; expected a name that ends in {', '.join(FILE_SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty")
    return suffix


def is_compressed(path: Path) -> bool:
    """Returns True for a compressed file, in which no position can be sought."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file with the uncompressed content.

    Raises:
        BrokenFileError: The compressed data is truncated or invalid, also if that shows only while it is read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif suffix == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(stream)  # streams of Arrow cannot be iterated by line
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFileError(path, f"not a valid gzip file, or truncated: {error}") from None
    except OSError as error:  # Arrow has no error class of its own for broken zstd data
        if suffix != ".zst":
            raise
        raise BrokenFileError(path, f"not a valid zstd file, or truncated: {str(error).splitlines()[0]}") from None
