# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, and the class that users subclass to bring their own."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oumi.core.configs import DatasetParams
from oumi.core.data.readers import count_rows, excerpt, read_rows
from oumi.core.data.shapes import to_conversations
from oumi.core.errors import ConfigError, DataError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.registry import Registry
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import BadRow, Completion, Row, Source


class BaseSftDataset:
    """Rows that become conversations. Override `transform_conversation`, or `rows` where there is no file."""

    default_dataset: str | None = None
    """Id on the Hub, when the config names no other."""

    def __init__(
        self,
        *,
        dataset_name: str | None = None,
        dataset_path: str | None = None,
        split: str | None = "train",
        subset: str | None = None,
    ) -> None:
        """Takes which rows to read, as the config names them."""
        self.dataset_name = dataset_name or self.default_dataset or ""
        self.dataset_path = Path(dataset_path).expanduser() if dataset_path else None
        self.split = split
        self.subset = subset

    def rows(self) -> Iterator[Row | BadRow]:
        """Yields each row as a conversation, or as one that cannot be used."""
        for row in self.raw_rows():
            yield row if isinstance(row, BadRow) else self._transformed(row)

    def raw_rows(self) -> Iterator[Row | BadRow]:
        """Yields the rows of the local file, or of the data set on the Hub."""
        if self.dataset_path is None:
            return hub_rows(self.dataset_name, self.subset, self.split or "train")
        return local_rows(_of_split(self.dataset_path, self.split or "train"), self.dataset_name)

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a conversation."""
        raise NotImplementedError(f"{type(self).__name__} must define transform_conversation")

    def count(self) -> int | None:
        """Returns how many rows there are, None where only reading would tell."""
        path = self.dataset_path
        return count_rows(path) if path is not None and path.is_file() else None

    def _transformed(self, row: Row) -> Row | BadRow:
        try:
            made = self.transform_conversation(row.value)
            if isinstance(made, Conversation | Completion):
                return Row(made, row.source)
            reason = f"transform_conversation returned {type(made).__name__}, not a Conversation"
        except KeyError as error:
            reason = f"has no column {error}"
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (TypeError, ValueError, AttributeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        return BadRow(row.source, reason, excerpt(str(row.value)))


class ShapedDataset(BaseSftDataset):
    """Rows whose shape is found by looking at them."""

    shape: str | None = None

    def rows(self) -> Iterator[Row | BadRow]:
        """Yields each row as a conversation, or as prompt and completion."""
        return to_conversations(self.raw_rows(), self.shape)


DATASETS: Registry[type[BaseSftDataset]] = Registry(
    "data set",
    {
        "text_sft": "oumi.datasets.sft.text:TextSftDataset",
        "text_sft_jsonl": "oumi.datasets.sft.text:TextSftDataset",
        "yahma/alpaca-cleaned": "oumi.datasets.sft.alpaca:AlpacaDataset",
        "tatsu-lab/alpaca": "oumi.datasets.sft.alpaca:AlpacaDataset",
        "oumi/quickstart": "oumi.datasets.sft.quickstart:QuickstartDataset",
    },
)


def dataset_for(params: DatasetParams) -> BaseSftDataset:
    """Returns the data set that a config names: a registered one, or any other of the Hub by its shape.

    Raises:
        ConfigError: An argument that the data set does not take.
    """
    import_extra_files()
    full_name = f"{params.dataset_name}/{params.subset}"
    name = full_name if full_name in DATASETS else params.dataset_name
    found = DATASETS.get(name) if name in DATASETS else ShapedDataset
    kwargs = dict(params.dataset_kwargs)
    hub_name = kwargs.pop("dataset_name_override", None) or params.dataset_name
    known = _arguments(found)
    for key in kwargs:
        if key not in known:
            takes = f"; it takes {', '.join(sorted(known))}" if known else "; it takes none"
            raise ConfigError(
                f"dataset_kwargs.{key}: unknown to data set '{params.dataset_name}'{did_you_mean(key, known) or takes}"
            )
    return found(
        dataset_name=hub_name,
        dataset_path=params.dataset_path,
        split=params.split,
        subset=params.subset,
        **kwargs,
    )


def local_rows(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Yields the rows of a file, or of a directory that `datasets` saved."""
    if not path.is_dir():
        return read_rows(path, name)
    if not (path / "dataset_info.json").is_file():
        raise DataError(f"{path}: a directory, but not one that datasets.save_to_disk wrote")
    from datasets import load_from_disk

    return _enumerated(load_from_disk(str(path)), name, str(path))


def hub_rows(name: str, subset: str | None, split: str) -> Iterator[Row | BadRow]:
    """Yields the rows of a split of a data set on the Hub, or in its cache."""
    from datasets import load_dataset

    with hub_errors("data set", name):
        try:
            rows = load_dataset(name, name=subset, split=split)
        except ValueError as error:
            if "split" in str(error) or "config" in str(error).lower():
                raise DataError(f"data set {name}: {str(error).splitlines()[0]}") from error
            raise
    return _enumerated(rows, name, f"{name}[{split}]")


@lru_cache(maxsize=1)
def import_extra_files() -> None:
    """Imports the Python files listed in OUMI_EXTRA_DEPS_FILE, which register parts of the user's own."""
    listing = os.environ.get("OUMI_EXTRA_DEPS_FILE")
    if not listing:
        return
    if not Path(listing).is_file():
        raise ConfigError(f"OUMI_EXTRA_DEPS_FILE: no file {listing}")
    for line in (line.partition("#")[0].strip() for line in Path(listing).read_text().splitlines()):
        if not line:
            continue
        path = Path(line).expanduser()
        if not path.is_file():
            raise ConfigError(f"{listing}: no file {line}")
        # A name of its own, so that a file `datasets.py` does not stand for the library.
        spec = importlib.util.spec_from_file_location(f"oumi_extra_{path.stem}", path)
        assert spec is not None, "a path has a spec"
        assert spec.loader is not None, "a path has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


def _of_split(path: Path, split: str) -> Path:
    """Returns the directory of a split, if `datasets` saved several together, else the path itself."""
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        return path
    splits = json.loads(listing.read_text())["splits"]
    if split not in splits:
        hint = did_you_mean(split, splits) or f"; there are {', '.join(splits)}"
        raise DataError(f"{path}: unknown split '{split}'{hint}")
    return path / split


def _enumerated(rows: Any, name: str, place: str) -> Iterator[Row | BadRow]:
    for i, value in enumerate(rows):
        yield Row(value, Source(name, place, i))


_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _arguments(kind: type[BaseSftDataset]) -> set[str]:
    """Returns the arguments of a data set's class beyond those that every data set takes."""
    named: set[str] = set()
    for one in kind.__mro__:
        if one is not object and "__init__" in vars(one):
            named |= {
                key
                for key, argument in inspect.signature(one.__init__).parameters.items()
                if key != "self" and argument.kind in _NAMED
            }
    return named - {"dataset_name", "dataset_path", "split", "subset"}
