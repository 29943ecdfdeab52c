# SPDX-License-Identifier: Apache-2.0
"""Builds the stream of a plan: rows that are read and tokenized during training, and not stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from oumi.core.data.build import TableSpec, inputs_of, specs_of
from oumi.core.data.checks.supervision import NUM_CHECKED, check_supervision
from oumi.core.data.ledger import Ledger
from oumi.core.data.pipeline.loader import Collate
from oumi.core.data.pipeline.stream import ConcatenatedStream, ExampleStream, LimitedStream, Shuffle
from oumi.core.data.pipeline.stream_loader import MixedStream, PackedStream, StreamLoader
from oumi.core.data.store.cache import identity_of
from oumi.core.data.tokenize.encoder import Encoder
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.tokenize.preprocessor import Preprocessor
from oumi.core.errors import DataError
from oumi.core.log import logger
from oumi.core.plan.parts import Plan, StepsPlan
from oumi.core.system.cache import digest_of_values
from oumi.core.types.example import Example


@dataclass(frozen=True)
class StreamedRows:
    """Training rows that are read during training."""

    groups: MixedStream | PackedStream
    encoders: list[Encoder]
    """The encoder of each data set."""
    identity: str
    """Digest of all that decides the rows, with the sizes of the files instead of their content."""

    def reject_tokens_from(self, num_embeddings: int) -> None:
        """Rejects every row with a token of this id or a higher one, when it is read."""
        for encoder in self.encoders:
            encoder.num_embeddings = num_embeddings

    def log_packing(self) -> None:
        """Logs how full the packed rows were."""
        if isinstance(self.groups, PackedStream):
            share = 100 * self.groups.empty_share
            logger.info("data.train: packed into %d rows so far, %.1f%% empty", self.groups.num_rows, share)

    def loader(self, steps: StepsPlan, rank: int, collate: Collate) -> StreamLoader:
        """Returns the loader that cuts the rows into optimizer steps."""
        return StreamLoader(self.groups, steps, rank, collate)

    def first(self, count: int) -> list[list[Example]]:
        """Returns the first rows in the order of training; the position of the stream does not change."""
        begin = self.groups.state()
        try:
            return [self.groups.next_group() for _ in range(count)]
        finally:
            self.groups.restore(begin)


def open_stream(plan: Plan, preprocessor: Preprocessor, began: datetime, ledgers: list[Ledger]) -> StreamedRows:
    """Returns the training rows of a plan as a stream, and appends the ledger of each data set.

    Raises:
        DataError: A data set has no rows, or rows that the method does not train on.
    """
    mixed, seed = plan.data.train, plan.data.seed
    # `sample_count: 0` leaves a data set out; a mixture that must draw from it, or from nothing, cannot work.
    for params in mixed.datasets:
        if params.sample_count == 0 and params.mixture_proportion:
            raise DataError(f"data.train: {params.dataset_name} has no rows to draw from: its sample_count is 0")
    if all(params.sample_count == 0 for params in mixed.datasets):
        raise DataError("data.train: there are no rows to train on")
    parts, identities, encoders = [], [], []
    for spec in specs_of(plan, "train", began):
        params, dataset = spec.params, spec.dataset(is_streamed=True)
        ledgers.append(spec.ledger())
        shuffle_seed = params.seed if params.seed is not None else seed
        shuffle = Shuffle(shuffle_seed, params.shuffle_buffer_size) if params.shuffle else None
        row_tokenizer = spec.row_tokenizer(dataset, preprocessor)
        encoders.append(row_tokenizer.encoder)
        examples = ExampleStream(dataset, row_tokenizer, ledgers[-1], shuffle)
        stream = ConcatenatedStream(examples, dataset.concatenation) if dataset.concatenation else examples
        _check_first(stream, preprocessor, spec, spec.supervision(dataset))
        parts.append(LimitedStream(stream, params.sample_count, params.dataset_name))
        # Rows that do not come from files have no content to digest; their class and its arguments replace it.
        inputs = inputs_of(spec, dataset, preprocessor) or {"code of": [type(dataset).__name__, params.dataset_kwargs]}
        order = [params.shuffle, params.seed, params.shuffle_buffer_size, params.sample_count, dataset.concatenation]
        identities.append(digest_of_values({"rows": identity_of(inputs), "order": order}))
    mixture = MixedStream(parts, mixed.proportions, mixed.strategy, seed)
    groups: MixedStream | PackedStream = mixture
    if mixed.pack:
        groups = PackedStream(mixture, plan.data.row_length("train", plan.model.max_length), seed)
    identity = digest_of_values({"data sets": identities, "proportions": mixed.proportions})
    return StreamedRows(groups, encoders, identity)


def _check_first(
    stream: ExampleStream | ConcatenatedStream, preprocessor: Preprocessor, spec: TableSpec, supervision: TokenizeSpec
) -> None:
    """Verifies which tokens the first rows train; the position of the stream does not change.

    Raises:
        DataError: There are no rows, or one trains the wrong tokens.
    """
    begin = stream.state()
    count = min(limit for limit in (NUM_CHECKED, spec.params.sample_count) if limit is not None)
    examples = list(islice(iter(stream.next, None), count))
    # Restores the counts of the ledger, too: the training will count these rows again.
    stream.restore(begin)
    if count and not examples:
        short = "; do its documents fill one row of seq_length?" if isinstance(stream, ConcatenatedStream) else ""
        raise DataError(f"{spec.key}: {spec.ledger().dataset} has no rows to train on{short}")
    check_supervision(examples, preprocessor.tokenizer, supervision)
