# SPDX-License-Identifier: Apache-2.0
"""The cache of token tables, each in a folder named by the digest of all that decides its content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oumi.core.data.ledger import Ledger
from oumi.core.data.store.token_table import Chunk, TokenTable, images_unchanged, write_table
from oumi.core.system.cache import digest_of_values
from oumi.core.system.filesystem import lock, storage_errors

_UNFINISHED = ".unfinished-"
_LIBRARIES = ("tokenizers", "transformers", "jinja2")
"""Libraries whose version may change the tokens of a row."""

Inputs = Mapping[str, Any]
"""All that decides the content of a table, by name."""


def identity_of(inputs: Inputs) -> str:
    """Returns a digest of all inputs except the version of the code, which identifies the rows of a run."""
    # With the code, no run could be resumed after an update of Oumi.
    return digest_of_values({name: value for name, value in inputs.items() if name != "code"})


@lru_cache(maxsize=1)
def code_version() -> str:
    """Returns a digest of the code that turns rows into tokens, and of the versions of the libraries that it uses."""
    # Any change of these files may change the tokens. A version number would be forgotten once.
    digest = hashlib.sha256(" ".join(version(name) for name in _LIBRARIES).encode())
    core = Path(__file__).parents[2]
    rooms = [core / "data" / name for name in ("sources", "records", "datasets", "tokenize", "store")]
    for folder in (*rooms, core / "types", core.parent / "datasets"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def find_table(folder: Path, inputs: Inputs) -> TokenTable | None:
    """Returns the cached table of these inputs, None if there is no complete one."""
    directory = folder / digest_of_values(inputs)
    try:
        sizes = json.loads((directory / "table.json").read_text())["sizes"]
        # A full disk, or a copy that broke off, truncates files.
        if any((directory / name).stat().st_size != size for name, size in sizes.items()):
            return None
        if not images_unchanged(directory):
            return None
    except (OSError, ValueError, KeyError):
        return None
    with suppress(FileNotFoundError):  # another process may delete it now
        return TokenTable(directory)
    return None


def why_missed(folder: Path, inputs: Inputs) -> str:
    """Returns why there is no table of these inputs: how they differ from the most similar ones in the cache."""
    differences = []
    for path in folder.glob("*/table.json"):
        # Another process may delete it, or have written it with other code.
        with suppress(OSError, ValueError, KeyError):
            cached = json.loads(path.read_text())["inputs"]
            if cached.get("dataset") == json.loads(json.dumps(inputs["dataset"])):
                # To JSON and back, since a tuple is a list there.
                names = [name for name in inputs if cached.get(name) != json.loads(json.dumps(inputs[name]))]
                differences.append(names)
    if not differences:
        return "it was not tokenized before"
    nearest = min(differences, key=len)
    if not nearest:
        return "an image has changed, or the cached tokens are incomplete"
    return f"another {' and another '.join(nearest)}"


@contextmanager
def lock_table(folder: Path, inputs: Inputs) -> Iterator[None]:
    """Locks a table of the cache, so that one process writes it while others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{digest_of_values(inputs)}.lock").open("w") as file:
        lock(file.fileno(), Path(file.name))
        yield


def keep_table(folder: Path, inputs: Inputs, chunks: Iterable[Chunk], ledger: Ledger) -> TokenTable:
    """Writes the table of these inputs and returns it; it is in the cache completely, or not at all.

    The caller holds `lock_table`.

    Raises:
        DataError: More rows are rejected than the ledger allows; nothing is cached.
        StorageError: The disk of the cache is full, or fails.
    """
    directory = folder / digest_of_values(inputs)
    # Left by a process that was killed: no other one writes here, since we hold the lock.
    for leftover in folder.glob(f"{_UNFINISHED}{directory.name}-*"):
        shutil.rmtree(leftover)
    unfinished = folder / f"{_UNFINISHED}{directory.name}-{os.getpid()}"
    with storage_errors(unfinished, "free some space, or set OUMI_CACHE_DIR to a directory on another disk"):
        try:
            write_table(chunks, ledger, unfinished, {"inputs": inputs})
            if directory.exists():  # incomplete or outdated, or `find_table` would have returned it
                shutil.rmtree(directory)
            # Atomic: a reader finds the directory with all files, or no directory.
            unfinished.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return TokenTable(directory)
