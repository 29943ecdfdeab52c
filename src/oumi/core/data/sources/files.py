# SPDX-License-Identifier: Apache-2.0
"""Which files a path means, and how each is opened. Imports no torch."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from oumi.core.configs.data import COMPRESSED, FILE_SUFFIXES, is_pattern
from oumi.core.errors import DataError


class BrokenFileError(DataError):
    """A compressed file that cannot be read to its end."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


_SPLITS = {
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
    "train": ("train", "training"),
}
"""The words by which paths name a split, as on the Hub."""


def files_of(path: Path) -> list[Path]:
    """Returns the data files that a path means, by name: itself, those of a directory, or those of a pattern.

    Raises:
        DataError: None is found.
    """
    if is_pattern(str(path)):
        files = [file for file in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if file.is_file()]
    elif path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and format_of(file) and not _is_hidden(file, path)]
    else:
        return [path]
    if not files:
        raise DataError(f"{path}: no data file; one ends in {', '.join(FILE_SUFFIXES)}")
    return sorted(files)


def of_split(files: Sequence[Path], folder: Path, split: str) -> list[Path]:
    """Returns the files of a directory that belong to a split, all of them where no name says which they belong to.

    Raises:
        DataError: Names say which split each belongs to, and none is of the one that is wanted.
    """
    splits = {file: _split_of(file.relative_to(folder)) for file in files}
    splits_there = sorted(set(filter(None, splits.values())))
    requested_split = _split_of(Path(split))
    if not splits_there or requested_split is None:
        return list(files)
    matching = [file for file in files if splits[file] == requested_split]
    if not matching:
        raise DataError(f"{folder}: no file of split '{split}'; by their names there are {', '.join(splits_there)}")
    return matching


def _split_of(path: Path) -> str | None:
    """Returns the split that a path names by a word of its own, None if there is no such word."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((split for split, names in _SPLITS.items() if any(name in words for name in names)), None)


def _is_hidden(file: Path, folder: Path) -> bool:
    """Returns True for what programs keep beside the data, such as `.ipynb_checkpoints`."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def format_of(path: Path) -> str | None:
    """Returns the suffix that tells how a file is read, without that of its compression; None if it is no data."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = path.with_suffix("").suffix.lower()
    return suffix if suffix in FILE_SUFFIXES else None


def check_file(path: Path) -> str:
    """Returns the format of a file; raises DataError unless it can be read here."""
    suffix = format_of(path)
    if suffix is None:
        raise DataError(f"{path}: cannot be read; a data file ends in {', '.join(FILE_SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty")
    return suffix


def is_compressed(path: Path) -> bool:
    """Returns True for a file that must be read from its beginning."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Yields a file as its uncompressed bytes.

    Raises:
        BrokenFileError: It breaks off, or is not of its kind.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif suffix == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(stream)  # which knows lines
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFileError(path, f"not a gzip file, or it breaks off: {error}") from None
    except OSError as error:
        if suffix != ".zst":
            raise
        raise BrokenFileError(path, f"not a zstd file, or it breaks off: {str(error).splitlines()[0]}") from None
