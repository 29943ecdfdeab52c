# SPDX-License-Identifier: Apache-2.0
"""Opens the token table of a data set: from the cache, or by tokenizing its rows here or in a second process."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from datetime import datetime
from pathlib import Path

from oumi.core.configs import DatasetParams
from oumi.core.data.datasets import EXTRA_MODULE, BaseMapDataset, ShapedDataset, dataset_for
from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.pipeline.concatenate import ConcatenatedTable
from oumi.core.data.sources.jsonl import CHANGED
from oumi.core.data.store.cache import Inputs, code_version, find_table, identity_of, keep_table, lock_table, why_missed
from oumi.core.data.store.lazy_table import LazyTable
from oumi.core.data.store.token_table import Chunk, TokenTable, tokenize_rows
from oumi.core.data.store.workers import chunks_of
from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.data.tokenize.preprocessor import Preprocessor, load_preprocessor
from oumi.core.errors import ConfigError, DataError, OumiError, StorageError
from oumi.core.log import logger
from oumi.core.plan.methods import METHODS
from oumi.core.plan.parts import ModelPlan, Plan
from oumi.core.system.cache import digest_of_values, token_cache
from oumi.core.system.filesystem import can_write, expanded
from oumi.core.types.answers import NO_LIMITS, AnswerLimits
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Judged, Preference, Prompt, Text

_NAMES: dict[type, str] = {
    Conversation: "chats",
    Text: "texts",
    Preference: "preferences",
    Judged: "completions judged by a column 'label' of true or false",
    Prompt: "prompts",
}
"""Names for messages, by the type of the rows."""
_MAX_WORKERS = 8
_NICENESS = 10
"""Added to the priority value of the second process: the system schedules the training first."""


@dataclass(frozen=True)
class TableSpec:
    """All settings that decide the content of a table. It is pickled and sent to the process that tokenizes."""

    params: DatasetParams
    model: ModelPlan
    train_on: str
    truncation: str | None
    key: str
    """The split's section of the config."""
    max_rejected: int
    began: datetime
    """The date and time that chat templates write."""
    may_grow: bool = True
    """Training may start before all rows are tokenized."""
    method: str = "next_token"
    """The training method, which decides the types of rows that are allowed."""
    tool_results: tuple[str, str] | None = None
    """Strings that open and close the results of tools within answers."""
    answer_limits: AnswerLimits = NO_LIMITS

    def dataset(self, is_streamed: bool = False) -> BaseMapDataset:
        """Returns the data set; rows that fit several schemas are read with the schema of the method.

        Raises:
            DataError: The method does not train on rows of this type.
        """
        dataset = dataset_for(self.params, is_streamed)
        types = METHODS[self.method].rows
        if isinstance(dataset, ShapedDataset):
            dataset.read_as(types)
        if dataset.holds not in types:
            name = self.params.dataset_path or self.params.dataset_name
            expected = " or ".join(text for type_, text in _NAMES.items() if type_ in types)
            raise DataError(f"{name}: expected {expected} for method {self.method}, got {_NAMES[dataset.holds]}")
        return dataset

    def tokenize_spec(self, dataset: BaseMapDataset) -> TokenizeSpec:
        """Returns how the rows of a data set are tokenized."""
        return TokenizeSpec(
            train_on=self.train_on,
            max_length=self.max_length(dataset),
            truncation=self.truncation,
            tool_results=self.tool_results,
            answer_limits=self.answer_limits,
            unpairs=self.unpairs(dataset),
        )

    def unpairs(self, dataset: BaseMapDataset) -> bool:
        """Returns True if rows are preferences, and the method takes judged answers."""
        return dataset.holds is Preference and Judged in METHODS[self.method].rows

    def supervision(self, dataset: BaseMapDataset) -> TokenizeSpec:
        """Returns which tokens the rows of a data set should train."""
        # `train_on` is about the turns of a chat; plain texts have none, and train all of their tokens.
        spec = self.tokenize_spec(dataset)
        return replace(spec, train_on="all") if dataset.holds is Text else spec

    def ledger(self) -> Ledger:
        """Returns an empty ledger for this data set."""
        return Ledger(self.params.dataset_path or self.params.dataset_name, self.key, self.max_rejected)

    def max_length(self, dataset: BaseMapDataset) -> int | None:
        """Returns the largest number of tokens of a row, None for documents that are cut when they are concatenated.

        Raises:
            ConfigError: Concatenated rows would exceed the model's length, or `truncation` is set for them.
        """
        limit = self.model.max_length
        if dataset.concatenation is None:
            return limit
        if limit is not None and dataset.concatenation.length > limit:
            raise ConfigError(
                f"{self.key}: dataset_kwargs.seq_length of {self.params.dataset_name} is "
                f"{dataset.concatenation.length}, the model takes {limit} tokens"
            )
        if self.truncation is not None:
            raise ConfigError(f"{self.key}.truncation: documents that are concatenated (seq_length) are not truncated")
        return None

    def row_tokenizer(self, dataset: BaseMapDataset, preprocessor: Preprocessor) -> RowTokenizer:
        """Returns the tokenizer for the rows of a data set."""
        template = Template(preprocessor.tokenizer, preprocessor.tokenizer.chat_template, self.began)
        return RowTokenizer(preprocessor.tokenizer, template, self.tokenize_spec(dataset), preprocessor.image_encoder)


def specs_of(plan: Plan, split: str, began: datetime) -> list[TableSpec]:
    """Returns the spec of each data set of a split, `train` or `validation`, in the order of the config."""
    mixed = plan.data.train if split == "train" else plan.data.validation
    # Training may start early, unless it is refused for duplicates, which are not known before all rows are tokenized.
    # With several ranks, the main one tokenizes first, and the others read its tables from the cache. The workers of
    # other trainers cannot ask for the end of a process that their parent has started.
    duplicates_allowed = "error" not in (plan.data.train.on_duplicates, plan.data.validation.on_duplicates)
    return [
        TableSpec(
            params=params,
            model=plan.model,
            train_on=plan.data.train_on,
            truncation=mixed.truncation,
            key=mixed.section,
            max_rejected=mixed.max_rejected_rows,
            began=began,
            may_grow=duplicates_allowed and plan.steps.world_size == 1 and plan.is_native,
            method=plan.method.name,
            tool_results=plan.data.tool_results,
            answer_limits=plan.data.answer_limits,
        )
        for params in mixed.datasets
    ]


@dataclass(frozen=True)
class IdentifiedTable:
    """A table, with the digest by which a resumed run recognizes its rows."""

    table: TokenTable | LazyTable | ConcatenatedTable
    identity: str
    supervision: TokenizeSpec
    """Which tokens its rows should train."""


def open_table(spec: TableSpec, preprocessor: Preprocessor, ledger: Ledger) -> IdentifiedTable:
    """Returns the table of a data set, and counts its rows in a ledger.

    The table is read from the cache if it is there. A large data set is tokenized by a second process; if its rows have
    random access, training starts before that process ends.

    Raises:
        DataError: More rows are rejected than the split allows.
    """
    dataset = spec.dataset()
    opened = _open_rows(spec, dataset, preprocessor, ledger)
    table, concatenation = opened.table, dataset.concatenation
    if concatenation is None:
        return opened
    assert isinstance(table, TokenTable), "a table that grows is not concatenated"
    try:
        concatenated = ConcatenatedTable(table, concatenation)
    except DataError as error:
        raise DataError(f"{ledger.dataset}: {error}") from None
    ledger.counts = concatenated.account(ledger.counts)
    return replace(
        opened,
        table=concatenated,
        identity=digest_of_values({"rows": opened.identity, "concatenation": asdict(concatenation)}),
    )


def _open_rows(spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor, ledger: Ledger) -> IdentifiedTable:
    inputs = inputs_of(spec, dataset, preprocessor)
    supervision = spec.supervision(dataset)
    if inputs is None:
        table = tokenize_rows(dataset.rows(), spec.row_tokenizer(dataset, preprocessor), ledger)
        return IdentifiedTable(table, table.digest, supervision)
    folder, identity = token_cache(), identity_of(inputs)
    cached = find_table(folder, inputs)
    if cached is None and not can_write(folder):
        logger.warning("%s cannot be written, so no tokens are kept; OUMI_CACHE_DIR names another cache", folder)
        table = tokenize_rows(dataset.rows(), spec.row_tokenizer(dataset, preprocessor), ledger)
        return IdentifiedTable(table, identity, supervision)
    if cached is None:
        logger.info("%s is tokenized: %s", ledger.dataset, why_missed(folder, inputs))
        # The second process looks up the class of the data set by name: it must be ours, or in a file that it imports.
        is_importable = type(dataset).__module__.startswith(("oumi.", EXTRA_MODULE))
        is_requested = spec.params.transform_num_workers is not None and _num_workers(spec) > 1
        if is_importable and (is_requested or dataset.stored.is_large):
            build = _TableProcess(spec, folder, inputs, ledger)
            # Training may start early only if each row becomes exactly one example. By default, long texts are split.
            splitting = ("split",) if dataset.holds is Conversation else (None, "split")
            is_single = spec.truncation not in splitting and spec.max_rejected == 0 and dataset.concatenation is None
            is_single = is_single and not spec.unpairs(dataset)
            indexed = dataset.indexed() if spec.may_grow and is_single else None
            if indexed is not None:
                row_tokenizer = spec.row_tokenizer(dataset, preprocessor)
                growing = LazyTable(indexed, dataset.value_of, row_tokenizer, build, ledger)
                return IdentifiedTable(growing, identity, supervision)
            cached = build.wait()
        else:
            cached = make_table(spec, dataset, preprocessor, ledger)
    # The table has the counts of the run that wrote it, whose limit may have been another.
    ledger.counts = Counts.from_state(cached.ledger)
    ledger.close()
    return IdentifiedTable(cached, identity, supervision)


def make_table(
    spec: TableSpec,
    dataset: BaseMapDataset,
    preprocessor: Preprocessor,
    ledger: Ledger,
    num_workers: int = 1,
    parent: int | None = None,
) -> TokenTable:
    """Tokenizes a data set into the cache, unless another process has done so meanwhile, and returns its table.

    Args:
        spec: Settings of the table.
        dataset: Its rows are tokenized.
        preprocessor: The tokenizer and the processor of the run.
        ledger: Counts the rows.
        num_workers: Number of processes that tokenize.
        parent: Id of the process that waits for the table; this process exits when that one has ended.

    Raises:
        DataError: More rows are rejected than the spec allows, or the files were changed meanwhile.
    """
    inputs, folder = inputs_of(spec, dataset, preprocessor), token_cache()
    assert inputs is not None, "only data sets from files are cached"
    with lock_table(folder, inputs):
        # Another process may have written the table while this one waited for the lock.
        cached = find_table(folder, inputs)
        if cached is not None:
            return cached
        indexed = dataset.indexed() if num_workers > 1 else None
        raw = None if indexed is not None else dataset.raw_rows()
        chunks = chunks_of(raw, indexed, dataset.value_of, spec.row_tokenizer(dataset, preprocessor), num_workers)
        return keep_table(folder, inputs, _guard(chunks, dataset, ledger, parent), ledger)


def inputs_of(spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor) -> Inputs | None:
    """Returns all that decides the content of a table, by name; None if the rows do not come from files."""
    content = dataset.content()
    if content is None:
        return None
    template = spec.row_tokenizer(dataset, preprocessor).renderer.template
    params = spec.params
    # Relative paths of images start at the working directory or at the data.
    image_roots = [os.getcwd(), str(expanded(params.dataset_path or "").absolute())]
    limits = {} if spec.answer_limits == NO_LIMITS else {"lengths of answers": list(astuple(spec.answer_limits))}
    # A resumed run compares the digest of these names and values, so both must stay as they are. `why_missed` shows the
    # names to the user.
    return {
        "dataset": [params.dataset_name, params.dataset_path, params.subset, params.split],
        "place of images": image_roots if preprocessor.image_encoder is not None else None,
        "arguments of the data set": params.dataset_kwargs,
        "content of the data": content,
        "tokenizer": preprocessor.digest,
        "chat template": digest_of_values(
            {"text": template.text, "day": str(spec.began) if template.writes_date else None}
        ),
        "train_target": spec.train_on,
        "results of tools": spec.tool_results,
        "model_max_length": spec.max_length(dataset),
        "truncation": spec.truncation,
        "method": spec.method,
        "code": code_version(),
        **limits,
    }


class _TableProcess:
    """A second process that writes a table into the cache, a `TableBuild`."""

    def __init__(self, spec: TableSpec, folder: Path, inputs: Inputs, ledger: Ledger) -> None:
        self._folder, self._inputs, self._ledger = folder, inputs, ledger
        # A new interpreter, since a fork would copy the locks that other threads of this process hold.
        command = [sys.executable, "-m", "oumi.core.data.build", str(os.getpid())]
        # In a session of its own, which signals of the terminal do not reach: this process ends it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(pickle.dumps(spec))
        self._process.stdin.close()
        atexit.register(self.stop)

    def poll(self) -> TokenTable | None:
        """Returns the table if it is complete, otherwise None; raises as `wait` does."""
        return None if self._process.poll() is None else self.wait()

    def wait(self) -> TokenTable:
        """Waits for the table and returns it.

        Raises:
            DataError: Rows cannot be used, or the files were changed meanwhile.
            StorageError: The process ended without a table.
        """
        assert self._process.stdout is not None, "it is a pipe"
        # Read before the wait: a process that fills the pipe does not end until it is read.
        output = self._process.stdout.read()
        status = self._process.wait()
        if output:
            failure = json.loads(output)
            self._ledger.counts = Counts.from_state(failure["counts"])
            raise (StorageError if failure["is_storage"] else DataError)(failure["error"])
        if status:
            raise StorageError(f"{self._folder}: the process that tokenizes ended with status {status}; see above")
        table = find_table(self._folder, self._inputs)
        # It computed the inputs itself, so with other files it has written a table under another name.
        if table is None:
            raise DataError(f"{self._ledger.dataset}: {CHANGED}")
        return table

    def stop(self) -> None:
        """Ends the process and its workers if it is still running."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


def _num_workers(spec: TableSpec) -> int:
    num_workers = spec.params.transform_num_workers
    return num_workers if isinstance(num_workers, int) else min(_MAX_WORKERS, os.cpu_count() or 1)


def _guard(chunks: Iterator[Chunk], dataset: BaseMapDataset, ledger: Ledger, parent: int | None) -> Iterator[Chunk]:
    """Yields chunks; exits once the parent process has ended, and raises DataError if the files have changed."""
    before = dataset.content()
    for chunk in chunks:
        # An orphan gets another parent. Without this check, it would tokenize on after the run was killed.
        if parent is not None and os.getppid() != parent:
            raise SystemExit(1)
        yield chunk
    # Raised before the table is cached, so that no rows are stored under the digest of other files.
    if dataset.content() != before:
        raise DataError(f"{ledger.dataset}: {CHANGED}")


def _main() -> None:
    """Writes the table of the spec on standard input for a parent process; prints a failure as JSON, else nothing."""
    # An argument, since the parent may have ended while this process was starting.
    parent = int(sys.argv[1])
    spec: TableSpec = pickle.loads(sys.stdin.buffer.read())
    ledger = spec.ledger()
    try:
        make_table(spec, spec.dataset(), load_preprocessor(spec.model), ledger, _num_workers(spec), parent)
    except OumiError as error:
        counts, is_storage = ledger.counts.to_state(), isinstance(error, StorageError)
        print(json.dumps({"error": str(error), "counts": counts, "is_storage": is_storage}))


if __name__ == "__main__":
    _main()
