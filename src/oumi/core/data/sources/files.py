# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a path and opens them. Imports no torch."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from oumi.core.configs.data import COMPRESSED, FILE_SUFFIXES, is_pattern
from oumi.core.errors import DataError

_SPLIT_WORDS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
"""Words in a path that name a split, the same as on the Hub."""


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
        # `Path.glob` refuses absolute patterns, so the pattern is applied below the root of the path.
        files = [file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file()]
    elif is_directory:
        files = [
            file
            for file in path.rglob("*")
            if file.is_file()
            and format_of(file)
            # Tools keep copies of data in hidden folders, such as `.ipynb_checkpoints`.
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
    else:
        return [path]
    if not files:
        raise DataError(f"{path}: no data file; expected a name that ends in {', '.join(FILE_SUFFIXES)}")
    files.sort()  # the order of a directory differs between file systems
    if not is_directory:
        return files
    splits = {file: _split_of(file.relative_to(path)) for file in files}
    available = sorted(set(filter(None, splits.values())))
    requested = _split_of(Path(split))
    # A custom split, such as `train_sft` of the Hub, cannot be matched against file names.
    if not available or requested is None:
        return files
    matching = [file for file in files if splits[file] == requested]
    if not matching:
        raise DataError(f"{path}: no file of split '{split}'; the file names contain {', '.join(available)}")
    return matching


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
