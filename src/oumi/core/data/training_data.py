# SPDX-License-Identifier: Apache-2.0
"""Reads, tokenizes and checks the rows of a run, in the same way for every trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from oumi.core.batch import Batch
from oumi.core.data.build import open_table, specs_of
from oumi.core.data.build_stream import StreamedRows, open_stream
from oumi.core.data.checks.duplicates import check_duplicates, count_duplicates, warn_of_duplicates
from oumi.core.data.checks.supervision import check_supervision, draw, spread
from oumi.core.data.ledger import Ledger
from oumi.core.data.pipeline.loader import Collate, Epoch, Loader, most_tokens
from oumi.core.data.pipeline.mismatch import MismatchCollator
from oumi.core.data.pipeline.mixture import Mixture, Part, draws_of
from oumi.core.data.pipeline.packing import Packed
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.preprocessor import Preprocessor, load_preprocessor
from oumi.core.data.tokenize.token_bytes import token_bytes
from oumi.core.data.tokenize.tokenizer import added_tokens
from oumi.core.data.tokenize.turns import check_landmarks
from oumi.core.errors import ConfigError, DataError
from oumi.core.log import logger
from oumi.core.plan.parts import MixturePlan, Plan
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.run import StepSource
from oumi.core.system.libraries import quiet_libraries
from oumi.core.types.example import Example

_NUM_FIRST_ROWS = 128
_NUM_FIRST_TOKENS = 4096
"""What `first_documents` reads at most: enough for the main directions of a layer's inputs, in seconds."""


@dataclass(frozen=True)
class TrainingData:
    """The training rows and the validation rows of a run."""

    train: Epoch | StreamedRows
    validation: Epoch
    preprocessor: Preprocessor
    """Turns rows into batches. Its tokenizer has the chat template of the plan."""
    fingerprint: str
    """Digest of the training rows and their order."""
    ledgers: Mapping[str, Sequence[Ledger]]
    """The ledger of each data set, by split."""
    duplicates: dict[str, Any]
    """Rows that occur more than once, as JSON values; empty until all rows are tokenized."""

    @cached_property
    def bytes_per_token(self) -> float | None:
        """Returns the bytes of text per trained token of the validation rows, see the function of this name."""
        return bytes_per_token(self.validation, self.preprocessor.tokenizer)

    @property
    def num_rows(self) -> int | None:
        """Returns the number of rows of a training epoch, None for a stream."""
        return None if isinstance(self.train, StreamedRows) else len(self.train)

    def loader(self, plan: Plan, rank: int = 0, collate: Collate | None = None) -> StepSource:
        """Returns the loader that cuts the training rows into optimizer steps.

        Args:
            plan: Plan of the run.
            rank: The rank whose share it loads.
            collate: Joins examples into a batch, None for that of the method.
        """
        collate = collate or self.collate(plan)
        if isinstance(self.train, StreamedRows):
            return self.train.loader(plan.steps, rank, collate)
        return Loader(self.train, plan.steps, plan.data.seed, rank, collate)

    def collate(self, plan: Plan) -> Collate:
        """Returns the function that joins rows into the batches of the method."""
        collate = self.preprocessor.collate
        return MismatchCollator(collate, plan.model.max_length) if plan.method.mismatches else collate

    def largest(self, plan: Plan) -> LargestMicroBatch | None:
        """Returns the size of the largest micro-batch of training, None if not all lengths are known in advance."""
        train = self.train
        # Without flat batches, each document of a packed row is padded, so lengths of rows say nothing.
        if plan.data.train.pack and not plan.speed.flat_batches:
            return None
        if isinstance(train, StreamedRows):
            return None
        # A lazy table would wait here until all of its rows are tokenized.
        if any(isinstance(part.table, LazyTable) for part in train.parts):
            return None
        longest = max(int(part.table.lengths().max()) for part in train.parts if len(part))
        lengths = train.lengths()
        if plan.shares_prefixes:  # of a pair, what is not trained is its prompt, twice
            lengths = (lengths + train.targets() + 1) // 2
        return LargestMicroBatch(most_tokens(lengths, plan.with_num_rows(len(train)).steps, plan.data.seed), longest)

    def first(self, plan: Plan, count: int) -> list[list[Example]]:
        """Returns the first rows in the order of training, each of one example or several."""
        if isinstance(self.train, StreamedRows):
            return self.train.first(count)
        steps = plan.with_num_rows(len(self.train)).steps
        loader, size = Loader(self.train, steps, plan.data.seed), steps.rows_per_step
        places = range(min(count, len(self.train)))
        order = [row for step in range(-(-len(places) // size)) for row in loader.rows_of(step)]
        return [self.train.group(order[i]) for i in places]

    def first_documents(self, plan: Plan) -> Iterator[Batch]:
        """Yields some thousand tokens of the first rows in the order of training, each document as a batch.

        They are the same on all ranks.
        """
        num_tokens = 0
        for example in (example for row in self.first(plan, _NUM_FIRST_ROWS) for example in row):
            for document in example.documents():
                if num_tokens >= _NUM_FIRST_TOKENS:
                    return
                num_tokens += len(document.tokens)
                yield self.preprocessor.collate([document])

    def with_added_tokens(self, plan: Plan) -> Plan:
        """Returns the plan with the tokens that `tokenizer_kwargs` adds to the vocabulary."""
        tokens = added_tokens(plan.model, self.preprocessor.tokenizer)
        if not tokens:
            return plan
        names = ", ".join(map(str, self.preprocessor.tokenizer.convert_ids_to_tokens(tokens[:3])))
        logger.warning(
            "%d new tokens (%s%s): their embeddings begin as the mean of the others, and are trained",
            len(tokens), names, ", ..." if len(tokens) > 3 else "",
        )  # fmt: skip
        return replace(plan, model=replace(plan.model, added_tokens=tokens))

    def check_vocabulary(self, model: Any) -> None:
        """Raises ConfigError if a token of the rows has no embedding; a stream rejects such rows when it reads them."""
        num_embeddings = len(model.get_input_embeddings().weight)  # an adapter has no `num_embeddings`
        # `highest_token` waits for a table that is still being written, so it is read only if it decides.
        if max(self.preprocessor.tokenizer.get_vocab().values()) < num_embeddings:
            return
        highest = self.validation.highest_token
        if isinstance(self.train, StreamedRows):
            self.train.reject_tokens_from(num_embeddings)
        else:
            highest = max(highest, self.train.highest_token)
        if highest >= num_embeddings:
            token = self.preprocessor.tokenizer.convert_ids_to_tokens(highest)
            raise ConfigError(
                f"model.tokenizer_name: token {highest} ('{token}') of the rows has no embedding: the model has "
                f"{num_embeddings} embeddings. Is this the tokenizer of the model?"
            )

    def close(self, may_wait: bool = False) -> None:
        """Stops processes that still tokenize, or waits for them, and completes ledgers and duplicates.

        Args:
            may_wait: Wait until all rows are tokenized. Otherwise, ledgers count the rows that were trained so far.
        """
        splits = {"validation": self.validation.parts}
        if isinstance(self.train, StreamedRows):
            self.train.log_packing()
        else:
            splits = {"train": self.train.parts, **splits}
        # Before the tables are closed: one that was stopped is never complete.
        if not self.duplicates:
            self.duplicates.update(count_duplicates(splits, may_wait))
            warn_of_duplicates(self.duplicates)
        for split, parts in splits.items():
            for part, ledger in zip(parts, self.ledgers[split], strict=True):
                if isinstance(part.table, LazyTable):
                    ledger.counts = part.table.close(may_wait)


def bytes_per_token(rows: Epoch, tokenizer: Any) -> float | None:
    """Returns the bytes of text per trained token of rows that train all of their tokens.

    None if tokens of a row are not trained, such as the questions of a chat, or if the bytes of tokens are not known.
    The first token of a document counts neither as token nor by its bytes, since nothing predicts it.
    """
    lengths = token_bytes(tokenizer)
    if lengths is None:
        return None
    num_bytes = num_tokens = 0
    for example in (example for i in range(len(rows)) for example in rows.group(i)):
        starts = list(example.starts)
        num_trained = int(example.is_target.sum()) + int((~example.is_target[starts]).sum())
        if num_trained < len(example.tokens):
            return None
        num_bytes += int(lengths[example.tokens].sum() - lengths[example.tokens[starts]].sum())
        num_tokens += len(example.tokens) - len(starts)
    return num_bytes / num_tokens if num_tokens and num_bytes else None


def load_training_data(plan: Plan, began: datetime, writes: bool = True) -> TrainingData:
    """Returns the rows of a plan, and writes their ledgers and duplicates to `data_report.json`.

    Args:
        plan: Plan of the run.
        began: The date and time that chat templates write.
        writes: Write the report; True for the main rank alone.

    Raises:
        DataError: More rows are rejected than the plan allows, or rows train the wrong tokens.
    """
    ledgers: dict[str, list[Ledger]] = {"train": [], "validation": []}
    duplicates: dict[str, Any] = {}
    try:
        rows = read_training_data(plan, began, ledgers, duplicates)
    finally:
        # Also if the rows are refused: the report then says why.
        if writes:
            write_report(plan.output_dir, ledgers, duplicates)
    warn_of_duplicates(duplicates)
    if plan.logs.examples:
        logger.info(
            "first row, trained tokens in brackets:\n%s", draw(rows.first(plan, 1)[0][0], rows.preprocessor.tokenizer)
        )
    return rows


def read_training_data(
    plan: Plan,
    began: datetime,
    ledgers: dict[str, list[Ledger]] | None = None,
    duplicates: dict[str, Any] | None = None,
) -> TrainingData:
    """Returns the rows of a plan; raises as `load_training_data`.

    Args:
        plan: Plan of the run.
        began: The date and time that chat templates write.
        ledgers: Empty lists for `train` and `validation`, to which the ledgers are appended even if this raises.
        duplicates: An empty dict for the duplicates, filled even if they are refused.
    """
    ledgers = {"train": [], "validation": []} if ledgers is None else ledgers
    duplicates = {} if duplicates is None else duplicates
    quiet_libraries(plan.logs.dependency_level, plan.device)
    preprocessor = load_preprocessor(plan.model)
    tokenizer = preprocessor.tokenizer
    check_landmarks(Template(tokenizer, tokenizer.chat_template, began), plan.data.landmarks)
    # The validation split first: it is usually the smaller one, so its problems show soon.
    validation, _ = _mixture(plan, "validation", preprocessor, began, ledgers["validation"])
    if plan.data.validation.datasets:
        check_rows_left("validation", len(validation), ledgers["validation"])
    if plan.data.train.stream:
        # The rows of a stream are not known before the training, so only the validation split is compared.
        stream = open_stream(plan, preprocessor, began, ledgers["train"])
        duplicates.update(count_duplicates({"validation": validation.parts}))
        check_duplicates(duplicates, plan.data)
        return TrainingData(stream, validation, preprocessor, stream.identity, ledgers, duplicates)
    train, identity = _mixture(plan, "train", preprocessor, began, ledgers["train"])
    check_rows_left("train", len(train), ledgers["train"])
    duplicates.update(count_duplicates({"train": train.parts, "validation": validation.parts}))
    check_duplicates(duplicates, plan.data)
    return TrainingData(train, validation, preprocessor, identity, ledgers, duplicates)


def _mixture(
    plan: Plan, split: str, preprocessor: Preprocessor, began: datetime, ledgers: list[Ledger]
) -> tuple[Epoch, str]:
    """Returns the epoch of a split, and a digest of its rows and their order."""
    mixed: MixturePlan = plan.data.train if split == "train" else plan.data.validation
    opened = []
    for spec in specs_of(plan, split, began):
        # Appended first, so that the report has the ledger of a data set that is refused.
        ledgers.append(spec.ledger())
        opened.append(open_table(spec, preprocessor, ledgers[-1]))
    # How many examples an epoch draws from each data set.
    tables = [identified.table for identified in opened]
    counts = [params.sample_count for params in mixed.datasets]
    lengths = [len(table) if count is None else count for table, count in zip(tables, counts, strict=True)]
    for params, table, length in zip(mixed.datasets, tables, lengths, strict=True):
        if not len(table) and (length or params.mixture_proportion):
            raise DataError(f"data.{split}: {params.dataset_name} has no rows to draw from")
    draws = draws_of(lengths, mixed.proportions, mixed.strategy)
    parts = []
    for params, table, ledger, num_draws in zip(mixed.datasets, tables, ledgers, draws, strict=True):
        seed = params.seed if params.seed is not None else plan.data.seed
        parts.append(Part(table, seed if params.shuffle else None, num_draws))
        ledger.drawn = num_draws
    # Checkpoints store this digest of the rows and their order, so its text must not change.
    lines = [
        f"{identified.identity} {part.shuffle_seed} {len(part)}\n"
        for identified, part in zip(opened, parts, strict=True)
    ]
    identity = hashlib.sha256("".join(lines).encode()).hexdigest()
    for identified, part in zip(opened, parts, strict=True):
        if len(part):
            check_supervision(spread(identified.table), preprocessor.tokenizer, identified.supervision)
    mixture = Mixture(parts)
    if not mixed.pack:
        return mixture, identity
    packed = Packed(mixture, plan.data.row_length(split, plan.model.max_length))
    logger.info(
        "data.%s: %d examples in %d rows, %.1f%% empty", split, len(mixture), len(packed), 100 * packed.empty_share
    )
    return packed, identity


def check_rows_left(split: str, num_rows: int, ledgers: Sequence[Ledger]) -> None:
    """Raises DataError, with the reason of the first rejected row, if an epoch of a split has no rows."""
    if num_rows:
        return
    purpose = "train on" if split == "train" else "evaluate"
    counts = next((ledger.counts for ledger in ledgers if ledger.counts.shown), None)
    reason = ""
    if counts is not None:
        reason = f": {counts.rejected} of {counts.read} rows cannot be used, the first:\n  {counts.shown[0]}"
    names = ", ".join(ledger.dataset for ledger in ledgers)
    raise DataError(f"data.{split}: {names}: there are no rows to {purpose}{reason}")


def write_report(output_dir: Path, ledgers: Mapping[str, Sequence[Ledger]], duplicates: Mapping[str, Any]) -> None:
    """Writes the ledger of every data set, and the duplicate rows, to `data_report.json`."""
    report: dict[str, Any] = {
        split: [ledger.to_dict() for ledger in split_ledgers]
        for split, split_ledgers in ledgers.items()
        if split_ledgers
    }
    report["duplicates"] = duplicates or "not counted: rows of a stream are not kept, others were not all tokenized"
    (output_dir / "data_report.json").write_text(json.dumps(report, indent=1) + "\n")
