# SPDX-License-Identifier: Apache-2.0
"""The streams of a plan: training rows that are read on the way, and never kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from oumi.core.configs import DatasetParams
from oumi.core.data.build import TableSpec, inputs_of, specs_of
from oumi.core.data.checks.supervision import NUM_CHECKED, check_supervision
from oumi.core.data.datasets import BaseMapDataset
from oumi.core.data.ledger import Ledger
from oumi.core.data.pipeline.loader import Collate
from oumi.core.data.pipeline.stream import ConcatenatedStream, ExampleStream, LimitedStream, Shuffle
from oumi.core.data.pipeline.stream_loader import MixedStream, PackedStream, StreamLoader
from oumi.core.data.store.cache import identity_of
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.tokenize.preprocessor import Preprocessor
from oumi.core.errors import DataError
from oumi.core.log import logger
from oumi.core.plan.parts import Plan, StepsPlan
from oumi.core.system.cache import digest_of_values
from oumi.core.types.example import Example


@dataclass(frozen=True)
class StreamedRows:
    """Training rows that are read on the way."""

    groups: MixedStream | PackedStream
    highest_token: int
    """The largest id that may come."""
    identity: str
    """Digest of all that decides them, but for the files' content, which is not read before."""

    def tell(self) -> None:
        """Logs how full the rows were that examples were packed into."""
        if isinstance(self.groups, PackedStream):
            share = 100 * self.groups.empty_share
            logger.info("data.train: packed into %d rows so far, %.1f%% empty", self.groups.num_rows, share)

    def loader(self, steps: StepsPlan, rank: int, collate: Collate) -> StreamLoader:
        """Returns what cuts the rows into steps."""
        return StreamLoader(self.groups, steps, rank, collate)

    def first(self, count: int) -> list[list[Example]]:
        """Returns the first rows in the order of training; the stream stands where it stood."""
        begin = self.groups.state()
        try:
            return [self.groups.next_group() for _ in range(count)]
        finally:
            self.groups.restore(begin)


def open_stream(plan: Plan, preprocessor: Preprocessor, began: datetime, ledgers: list[Ledger]) -> StreamedRows:
    """Returns the training rows of a plan as a stream, and appends the ledger of each data set.

    Raises:
        DataError: A data set holds what is not trained here, or nothing at all.
    """
    mixed, seed = plan.data.train, plan.data.seed
    for params in mixed.datasets:
        if params.sample_count == 0 and params.mixture_proportion:
            raise DataError(f"data.train: {params.dataset_name} has no row to draw from: its sample_count is 0")
    if all(params.sample_count == 0 for params in mixed.datasets):
        raise DataError("data.train: there is no row to train on")
    parts, identities = [], []
    for spec in specs_of(plan, "train", began):
        ledgers.append(spec.ledger())
        dataset = spec.dataset(is_streamed=True)
        stream = _stream(spec, dataset, preprocessor, ledgers[-1], seed)
        _check_first(stream, preprocessor, spec, spec.supervision(dataset))
        parts.append(LimitedStream(stream, spec.params.sample_count, spec.params.dataset_name))
        identities.append(_identity(spec, dataset, preprocessor))
    mixture = MixedStream(parts, mixed.proportions, mixed.strategy, seed)
    groups: MixedStream | PackedStream = mixture
    if mixed.pack:
        groups = PackedStream(mixture, plan.data.row_length("train", plan.model.max_length), seed)
    return StreamedRows(
        groups,
        len(preprocessor.tokenizer) - 1,
        digest_of_values({"data sets": identities, "proportions": mixed.proportions}),
    )


def _stream(
    spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor, ledger: Ledger, seed: int
) -> ExampleStream | ConcatenatedStream:
    shuffle = _shuffle(spec.params, seed)
    stream = ExampleStream(dataset, spec.row_tokenizer(dataset, preprocessor), ledger, shuffle)
    return ConcatenatedStream(stream, dataset.concatenation) if dataset.concatenation else stream


def _shuffle(params: DatasetParams, seed: int) -> Shuffle | None:
    own = params.seed if params.seed is not None else seed
    return Shuffle(own, params.shuffle_buffer_size) if params.shuffle else None


def _check_first(
    stream: ExampleStream | ConcatenatedStream, preprocessor: Preprocessor, spec: TableSpec, supervision: TokenizeSpec
) -> None:
    """Verifies what the first rows teach; the stream stands where it stood.

    Raises:
        DataError: There is no row to train on, or one that teaches the wrong thing.
    """
    begin = stream.state()
    count = min(limit for limit in (NUM_CHECKED, spec.params.sample_count) if limit is not None)
    examples = list(islice(iter(stream.next, None), count))
    stream.restore(begin)
    if count and not examples:
        short = "; do its documents fill one row of seq_length?" if isinstance(stream, ConcatenatedStream) else ""
        raise DataError(f"{spec.key}: {spec.ledger().dataset} has no row to train on{short}")
    check_supervision(examples, preprocessor.tokenizer, supervision)


def _identity(spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor) -> str:
    inputs = inputs_of(spec, dataset, preprocessor) or {"code of": [type(dataset).__name__, spec.params.dataset_kwargs]}
    params = spec.params
    order = [params.shuffle, params.seed, params.shuffle_buffer_size, params.sample_count, dataset.concatenation]
    return digest_of_values({"rows": identity_of(inputs), "order": order})
