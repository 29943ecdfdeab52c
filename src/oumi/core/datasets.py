# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, and the classes that users subclass to bring their own."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oumi.core.configs import DatasetParams
from oumi.core.data.fields import Unusable
from oumi.core.data.json_rows import shown
from oumi.core.data.readers import SAMPLES
from oumi.core.data.shapes import detect_shape, to_value
from oumi.core.data.sources import IndexedRows, Rows, digest_of, rows_of
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.registry import DATASETS
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import BadRow, Completion, Judged, Preference, Prompt, Row, Text

VALUES = (Conversation, Completion, Text, Preference, Judged, Prompt)
"""What a row may stand for."""


class BaseMapDataset:
    """Rows, each of which stands for something to learn. Override `transform`, or `raw_rows` where there is no file."""

    default_dataset: str | None = None
    """Id on the Hub, when the config names no other."""
    sample_by = "document"
    """What is one row of a text file."""

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

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns what a row stands for: one of VALUES, or a mapping of a shape that is known."""
        raise NotImplementedError(f"{type(self).__name__} must define transform")

    def rows(self) -> Iterator[Row | BadRow]:
        """Yields each row as what it stands for, or as one that cannot be used."""
        for row in self.raw_rows():
            yield self.value_of(row)

    def raw_rows(self) -> Iterator[Row | BadRow]:
        """Yields the rows of the local files, or of the data set on the Hub."""
        return iter(self.stored)

    @cached_property
    def stored(self) -> Rows:
        """Returns the rows as they are stored."""
        return rows_of(self.dataset_name, self.dataset_path, self.subset, self.split or "train", self.sample_by)

    @property
    def is_stored(self) -> bool:
        """Returns True if the rows are read, not made by code of the class."""
        return type(self).raw_rows is BaseMapDataset.raw_rows and type(self).rows is BaseMapDataset.rows

    def value_of(self, row: Row | BadRow) -> Row | BadRow:
        """Returns a row as what it stands for, or as one that cannot be used."""
        if isinstance(row, BadRow):
            return row
        try:
            made = self.transform(row.value)
            if isinstance(made, VALUES):
                return Row(made, row.source)
            if isinstance(made, Mapping) and (shape := detect_shape(made)) is not None:
                return to_value(Row(made, row.source), shape)
            reason = f"{self._hook} returned {type(made).__name__}, not {self._wanted}"
        except KeyError as error:
            reason = f"has no column {error}"
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (TypeError, ValueError, AttributeError, Unusable) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        return BadRow(row.source, reason, shown(row.value))

    def count(self) -> int | None:
        """Returns how many rows there are, None where only reading would tell."""
        return self.stored.count() if self.dataset_path is not None and self.is_stored else None

    def content(self) -> dict[str, str] | None:
        """Returns digests of all that decides what the rows are, None where that is more than files."""
        if not self.is_stored:
            return None
        try:
            code = {one.__module__: digest_of(Path(inspect.getfile(one))) for one in type(self).__mro__[:-1]}
        except (TypeError, OSError):  # written at a prompt or in a notebook
            return None
        return {**self.stored.content(), **code}

    def indexed(self) -> IndexedRows | None:
        """Returns the stored rows as a list of which any is found at once, None where there is none."""
        return self.stored.indexed() if self.is_stored else None

    holds = "chats"
    """Which kind of value the rows stand for."""
    _hook = "transform"
    _wanted = "a Conversation"


class BaseSftDataset(BaseMapDataset):
    """Rows that become conversations. Override `transform_conversation`."""

    _hook = "transform_conversation"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a conversation."""
        return self.transform_conversation(sample)

    def transform_conversation(self, example: Mapping[str, Any]) -> Conversation:
        """Returns a row as a conversation."""
        raise NotImplementedError(f"{type(self).__name__} must define transform_conversation")


class VisionLanguageSftDataset(BaseSftDataset):
    """Rows that become conversations with pictures. Override `transform_conversation`."""


class BaseDpoDataset(BaseMapDataset):
    """Rows that become preferences. Override `transform_preference`, unless they have a known shape already."""

    holds = "preferences"
    _hook = "transform_preference"
    _wanted = "a mapping with prompt, chosen and rejected"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a preference."""
        return self.transform_preference(sample)

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `chosen` and `rejected`, each a text or turns."""
        return sample


class VisionLanguageDpoDataset(BaseDpoDataset):
    """Rows that become preferences with pictures."""

    def __init__(
        self,
        *,
        prompt_key: str = "prompt",
        chosen_key: str = "chosen",
        rejected_key: str = "rejected",
        images_key: str = "images",
        **named: Any,
    ) -> None:
        """Takes how the columns are called."""
        super().__init__(**named)
        self._keys = {"prompt": prompt_key, "chosen": chosen_key, "rejected": rejected_key, "images": images_key}

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row with its columns as they are called everywhere."""
        return {name: sample.get(key) if name == "images" else sample[key] for name, key in self._keys.items()}


class BaseExperimentalKtoDataset(BaseMapDataset):
    """Rows that become a completion and whether it is a good one. Override `transform_kto`, or `transform`."""

    holds = "judged completions"
    _hook = "transform_kto"
    _wanted = "a mapping with prompt, completion and label"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as prompt, completion and label."""
        return self.transform_kto(sample)

    def transform_kto(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `completion` and `label`."""
        return sample


class BaseExperimentalGrpoDataset(BaseMapDataset):
    """Rows that become prompts, with whatever a reward needs beside them. Override `transform`."""

    holds = "prompts"
    _wanted = "a mapping with a prompt"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a prompt."""
        return to_prompt(sample)


class BaseRubricDataset(BaseExperimentalGrpoDataset):
    """Prompts whose answers are judged by rubrics: `name`, `description` and `weight` of each."""

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a prompt; raises ValueError if a rubric lacks something."""
        for i, one in enumerate(sample["rubrics"]):
            if not isinstance(one, Mapping) or not {"name", "description", "weight"} <= one.keys():
                raise ValueError(f"rubric {i} must have a name, a description and a weight")
        return to_prompt(sample)


class BaseIterableDataset(BaseMapDataset):
    """Rows that are read in order. Override `transform`."""


class BasePretrainingDataset(BaseIterableDataset):
    """Documents, all of which are learned."""

    holds = "texts"

    def __init__(self, *, dataset_text_field: str = "text", sample_by: str = "document", **named: Any) -> None:
        """Takes the column that holds the text, and what is one row of a text file."""
        super().__init__(**named)
        if sample_by not in SAMPLES:
            hint = did_you_mean(sample_by, SAMPLES) or f"; known: {', '.join(SAMPLES)}"
            raise ConfigError(f"dataset_kwargs.sample_by: unknown '{sample_by}'{hint}")
        self.dataset_text_field = dataset_text_field
        self.sample_by = sample_by

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a document."""
        text = sample[self.dataset_text_field]
        if not isinstance(text, str) or not text:
            raise ValueError(f"'{self.dataset_text_field}' must be text, and not empty")
        return Text(text)


class ShapedDataset(BaseMapDataset):
    """Rows whose shape is found by looking at them: that of the first row is the shape of all."""

    shape: str | None = None

    def value_of(self, row: Row | BadRow) -> Row | BadRow:
        """Returns a row as what it stands for, or as one that cannot be used."""
        if isinstance(row, BadRow):
            return row
        found = detect_shape(row.value)
        self.shape = self.shape or found
        return to_value(row, self.shape, found)

    @property
    def holds(self) -> str:  # type: ignore[override]  # found out, not declared
        """Returns which kind of value the rows stand for; from here on all must be of it."""
        if self.shape is None:
            rows = (row for row in self.raw_rows() if isinstance(row, Row))
            self.shape = next(filter(None, (detect_shape(row.value) for row in rows)), None)
        return _HELD.get(self.shape or "", "chats")


_HELD = {"preference": "preferences", "kto": "judged completions", "prompt": "prompts", "text": "texts"}
TRAINABLE = ("chats", "texts")
"""What rows of supervised training may hold."""
EXTRA_MODULE = "oumi_extra_"
"""Before the name of a module of the user's."""


def to_prompt(sample: Mapping[str, Any]) -> Prompt:
    """Returns a mapping with `prompt`, a text or turns, as a prompt; raises Unusable for any other."""
    from oumi.core.data.shapes import SHAPES

    made = SHAPES["prompt"](sample)
    assert isinstance(made, Prompt), "its shape says so"
    return made


DATASETS.add(
    {
        "text_sft": "oumi.datasets.sft.text:TextSftDataset",
        "text_sft_jsonl": "oumi.datasets.sft.text:TextSftDataset",
        "yahma/alpaca-cleaned": "oumi.datasets.sft.alpaca:AlpacaDataset",
        "tatsu-lab/alpaca": "oumi.datasets.sft.alpaca:AlpacaDataset",
        "oumi/quickstart": "oumi.datasets.sft.quickstart:QuickstartDataset",
    }
)


def dataset_for(params: DatasetParams) -> BaseMapDataset:
    """Returns the data set that a config names: a registered one, or any other of the Hub by its shape.

    Raises:
        ConfigError: An argument that the data set does not take.
    """
    import_extra_files()
    full_name = f"{params.dataset_name}/{params.subset}"
    name = full_name if full_name in DATASETS else params.dataset_name
    found: type[BaseMapDataset] = DATASETS.get(name) if name in DATASETS else ShapedDataset
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
        spec = importlib.util.spec_from_file_location(f"{EXTRA_MODULE}{path.stem}", path)
        assert spec is not None, "a path has a spec"
        assert spec.loader is not None, "a path has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


_NAMED = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _arguments(kind: type[BaseMapDataset]) -> set[str]:
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
