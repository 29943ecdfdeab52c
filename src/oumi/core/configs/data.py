# SPDX-License-Identifier: Apache-2.0
"""The data sets of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from glob import escape
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from oumi.core.configs.base import Complaint, NamedEnum, Params
from oumi.core.errors import did_you_mean

COLLATORS = (
    "text_with_padding",
    "text_completions_only_with_padding",
    "vision_language_with_padding",
    "vision_language_sft",
)


class DatasetSplit(NamedEnum):
    """Split of the data."""

    TRAIN = "train"
    TEST = "test"
    VALIDATION = "validation"


class MixtureStrategy(StrEnum):
    """When a mixture with proportions ends."""

    FIRST_EXHAUSTED = "first_exhausted"
    ALL_EXHAUSTED = "all_exhausted"


class Truncation(NamedEnum):
    """How a row that is longer than model_max_length is handled."""

    RIGHT = "right"
    LEFT = "left"
    REJECT = "reject"
    SPLIT = "split"


class OnDuplicates(NamedEnum):
    """How duplicate rows are handled."""

    WARN = "warn"
    ERROR = "error"


class TrainTarget(NamedEnum):
    """Which turns of a conversation are trained."""

    ALL_ASSISTANT_TURNS = "all_assistant_turns"
    FINAL_ASSISTANT_TURN = "final_assistant_turn"


FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
"""Suffixes of data files."""
COMPRESSED = (".gz", ".zst")
"""Suffixes of compressed files, after one of those."""


def is_pattern(path: str) -> bool:
    """Returns True for a pattern of several files, such as `shards/*.jsonl`; a file of that very name is none."""
    return any(sign in path for sign in "*?[") and not Path(os.path.expanduser(path)).exists()


def pattern_of(path: str) -> str:
    """Returns a path as a pattern for `glob`, in which the folders and files that exist stand for themselves."""
    folder, pattern = Path(), Path()
    for part in Path(path).parts:
        folder = folder / part
        pattern = pattern / (escape(part) if folder.exists() else part)
    return str(pattern)


def is_split_expression(split: str) -> bool:
    """Returns True for a part of a split or several splits, such as `train[:100]` and `train+test`."""
    return any(sign in split for sign in "[+(")


class DatasetParams(Params):
    """One data set of a mixture."""

    dataset_name: str
    """Registered name, in any case, or the id of a data set on the Hub."""
    dataset_path: str | None = None
    """File or directory on the machine that trains."""
    subset: str | None = None
    """Config name of a Hub data set."""
    split: str = "train"
    """Split expression, such as `train[:1000]`."""
    dataset_kwargs: dict[str, Any] = {}
    """Arguments of the data set's class."""
    sample_count: NonNegativeInt | None = None
    """Rows to take, repeated when there are fewer."""
    mixture_proportion: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share in the mixture; all data sets have one, or none has."""
    shuffle: bool = False
    """Shuffle the rows of this data set before it joins the others."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of that shuffle; null takes training.data_seed."""
    shuffle_buffer_size: PositiveInt = 1000
    """Rows in the shuffle buffer of a stream."""
    trust_remote_code: bool = False
    """Not read: no data set runs code of the Hub, and model.trust_remote_code decides for a processor."""
    transform_num_workers: PositiveInt | Literal["auto"] | None = None
    """Processes that transform rows."""

    @property
    def is_file(self) -> bool:
        """Returns True if the path is that of a single data file, or a pattern of such files."""
        endings = tuple(kind + compressed for kind in FILE_SUFFIXES for compressed in ("", *COMPRESSED))
        return self.dataset_path is not None and self.dataset_path.lower().endswith(endings)

    def complaints(self) -> Iterator[Complaint]:
        for key in self.dataset_kwargs:
            if key in DatasetParams.model_fields:
                yield (
                    f"dataset_kwargs.{key}",
                    f"is a key of the data set itself: write it beside dataset_name, as '{key}'",
                )


class DatasetSplitParams(Params):
    """A mixture of data sets, and how its rows are trained."""

    datasets: list[DatasetParams] = []
    """Members of the mixture."""
    collator_name: str | None = None
    """Collator, which makes batches from rows; null takes the trainer's."""
    collator_kwargs: dict[str, Any] = {}
    """Arguments of the collator."""
    train_target: TrainTarget | None = None
    """Which turns are trained."""
    pack: bool = False
    """Fill rows of model_max_length with several documents, across steps."""
    stream: bool = False
    """Read rows during training instead of storing them first."""
    target_col: str | None = None
    """Deprecated, not read."""
    mixture_strategy: str = "first_exhausted"
    """`first_exhausted` or `all_exhausted`, for mixtures with proportions."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the order in which rows are trained; null takes training.data_seed."""
    use_torchdata: bool | None = None
    """Deprecated pipeline."""
    truncation: Truncation | None = None
    """How rows longer than model_max_length are handled: cut off their end (RIGHT) or their start (LEFT), reject them
    (REJECT), or split them into several rows (SPLIT); null splits texts and cuts off the end of all other rows."""
    max_rejected_rows: NonNegativeInt = 0
    """Unusable rows that are skipped, at most; one more stops the run."""
    on_duplicates: OnDuplicates = OnDuplicates.WARN
    """If the split has duplicate rows or ids, or shares rows with the validation set: log them and continue (WARN), or
    stop before the first step (ERROR)."""

    def complaints(self) -> Iterator[Complaint]:
        if self.collator_name is not None and self.collator_name not in COLLATORS:
            hint = did_you_mean(self.collator_name, COLLATORS)
            yield "collator_name", f"got '{self.collator_name}', must be one of {', '.join(COLLATORS)}{hint}"
        strategies = [strategy.value for strategy in MixtureStrategy]
        if self.mixture_strategy not in strategies:
            yield "mixture_strategy", f"got '{self.mixture_strategy}', must be one of {', '.join(strategies)}"
        # Other collators train every token or have an argument of their own for it.
        if self.train_target is not None and self.collator_name not in (
            None,
            "text_completions_only_with_padding",
        ):
            yield (
                "train_target",
                f"collator_name '{self.collator_name}' trains every token; use text_completions_only_with_padding",
            )
        shares = [params.mixture_proportion for params in self.datasets if params.mixture_proportion is not None]
        if shares and len(shares) < len(self.datasets):
            yield (
                "datasets",
                f"{len(shares)} of {len(self.datasets)} data sets have a mixture_proportion; set it for all or none",
            )
        elif shares and abs(sum(shares) - 1) > 1e-9:  # such as 0.1 + 0.2 + 0.7
            yield "datasets", f"the mixture proportions sum to {sum(shares):g}, must be 1"


class DataParams(Params):
    """The data of a run, by split."""

    train: DatasetSplitParams = DatasetSplitParams()
    """Data to train on."""
    validation: DatasetSplitParams = DatasetSplitParams()
    """Data for the validation loss during training."""
    test: DatasetSplitParams = DatasetSplitParams()
    """Not read by training."""

    def get_split(self, split: DatasetSplit) -> DatasetSplitParams:
        """Returns the mixture of a split."""
        part: DatasetSplitParams = getattr(self, DatasetSplit(split).value)
        return part

    def complaints(self) -> Iterator[Complaint]:
        if not self.train.datasets:
            yield "train.datasets", "required, but empty: name at least one data set"
        # All splits are trained and evaluated with the collator of `train`.
        named = {name for split in (self.train, self.validation, self.test) if (name := split.collator_name)}
        if len(named) > 1:
            yield "validation.collator_name", f"the splits have different collators: {', '.join(sorted(named))}"
        if named and self.train.collator_name is None:
            yield "train.collator_name", "required, since another split has a collator"
