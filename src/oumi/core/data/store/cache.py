# SPDX-License-Identifier: Apache-2.0
"""Tables of tokens that are kept, each under a digest of all that decides what is in it."""

from __future__ import annotations

import fcntl
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
from oumi.core.data.store.token_table import Chunk, TokenTable, write_table
from oumi.core.system.cache import digest_of_values

_UNFINISHED = ".unfinished-"
_OF_THE_CODE = "code"
_LIBRARIES = ("tokenizers", "transformers", "jinja2")

Inputs = Mapping[str, Any]
"""All that decides what is in a table, each by its name."""


def identity_of(inputs: Inputs) -> str:
    """Returns the digest of inputs but the version of the code: what rows a run is trained on."""
    return digest_of_values({name: value for name, value in inputs.items() if name != _OF_THE_CODE})


@lru_cache(maxsize=1)
def code_version() -> str:
    """Returns a digest of the code that makes tokens of rows, and of the libraries that it does so with."""
    digest = hashlib.sha256(" ".join(version(name) for name in _LIBRARIES).encode())
    core = Path(__file__).parents[2]
    rooms = [core / "data" / name for name in ("sources", "records", "datasets", "tokenize", "store")]
    for folder in (*rooms, core / "types", core.parent / "datasets"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def find_table(folder: Path, inputs: Inputs) -> TokenTable | None:
    """Returns the table that was kept for these inputs, None if there is none that is whole."""
    place = folder / digest_of_values(inputs)
    with suppress(FileNotFoundError):
        if _is_whole(place):
            return TokenTable(place)
    return None


def why_missed(folder: Path, inputs: Inputs) -> str:
    """Returns why there is no table for these inputs: what differs from the nearest that is kept."""
    differences = []
    for path in folder.glob("*/table.json"):
        with suppress(OSError, ValueError, KeyError):
            kept = json.loads(path.read_text())["inputs"]
            if kept.get("dataset") == json.loads(json.dumps(inputs["dataset"])):
                differences.append([name for name in inputs if kept.get(name) != json.loads(json.dumps(inputs[name]))])
    if not differences:
        return "it was not tokenized before"
    nearest = min(differences, key=len)
    return f"another {' and another '.join(nearest)}" if nearest else "the kept tokens are not whole"


@contextmanager
def lock_table(folder: Path, inputs: Inputs) -> Iterator[None]:
    """Holds the place of a table, so that one process makes it while others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{digest_of_values(inputs)}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep_table(folder: Path, inputs: Inputs, chunks: Iterable[Chunk], ledger: Ledger) -> TokenTable:
    """Returns the table of these inputs, which is written now; it is there whole, or not at all.

    Raises:
        DataError: More rows cannot be used than the ledger allows; nothing is kept.
    """
    place = folder / digest_of_values(inputs)
    for old in folder.glob(f"{_UNFINISHED}{place.name}-*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(old)
    unfinished = folder / f"{_UNFINISHED}{place.name}-{os.getpid()}"
    try:
        write_table(chunks, ledger, unfinished, {"inputs": inputs, "sizes": {}})
        _note_sizes(unfinished)
        if place.exists():
            shutil.rmtree(place)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return TokenTable(place)


def _note_sizes(place: Path) -> None:
    path = place / "table.json"
    facts = json.loads(path.read_text())
    facts["sizes"] = {one.name: one.stat().st_size for one in place.glob("*.bin")}
    with path.open("w") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())


def _is_whole(place: Path) -> bool:
    try:
        facts = json.loads((place / "table.json").read_text())
        return all((place / name).stat().st_size == size for name, size in facts["sizes"].items())
    except (OSError, ValueError, KeyError):
        return False
