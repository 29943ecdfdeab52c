# SPDX-License-Identifier: Apache-2.0
"""The table of tokens of one data set: found where it was kept, or made, here or in a process beside the training."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from oumi.core.configs import DatasetParams
from oumi.core.data.checks.duplicates import may_grow
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
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Judged, Preference, Prompt, Text

_SCHEMAS: dict[type, str] = {Preference: "preference", Judged: "kto", Prompt: "prompt"}
"""The schema in which rows that can be read in several ways are read, by what they are to stand for."""
_HOLDS: dict[type, str] = {
    Conversation: "chats", Text: "texts", Preference: "preferences", Judged: "judged completions", Prompt: "prompts",
}  # fmt: skip
"""What data sets call what their rows stand for."""
_MAX_WORKERS = 8
_NICENESS = 10


@dataclass(frozen=True)
class TableSpec:
    """All that decides what is in a table, and how its rows may fail."""

    params: DatasetParams
    model: ModelPlan
    train_on: str
    truncation: str | None
    key: str
    """The split's section of the config."""
    max_rejected: int
    began: datetime
    """The date and time that chat templates tell."""
    may_grow: bool = True
    """Rows may be trained before all of them are known."""
    method: str = "next_token"
    """What is learned from the rows, which decides what they may stand for."""
    takes_images: bool = True
    tool_results: tuple[str, str] | None = None
    """What opens and closes the results of tools within answers."""

    def dataset(self, is_streamed: bool = False) -> BaseMapDataset:
        """Returns the data set; where its rows may be read in several ways, as those that the method takes.

        Raises:
            DataError: It holds rows of another kind.
        """
        dataset = dataset_for(self.params, is_streamed)
        rows = METHODS[self.method].rows
        if isinstance(dataset, ShapedDataset) and (schemas := [_SCHEMAS[kind] for kind in rows if kind in _SCHEMAS]):
            dataset.shape = schemas[0]
        expected = [name for kind, name in _HOLDS.items() if kind in rows]
        if dataset.holds not in expected:
            name = self.params.dataset_path or self.params.dataset_name
            raise DataError(f"{name}: holds {dataset.holds}; method {self.method} takes {' and '.join(expected)}")
        return dataset

    def tokenize_spec(self, dataset: BaseMapDataset) -> TokenizeSpec:
        """Returns what is asked of the rows of a data set."""
        return TokenizeSpec(self.train_on, self.max_length(dataset), self.truncation, self.tool_results)

    def supervision(self, dataset: BaseMapDataset) -> TokenizeSpec:
        """Returns what the rows of a data set are to teach: texts are learned whole, whatever is asked of chats."""
        spec = self.tokenize_spec(dataset)
        return replace(spec, train_on="all") if dataset.holds == "texts" else spec

    def ledger(self) -> Ledger:
        """Returns an account that nothing is in yet."""
        return Ledger(self.params.dataset_path or self.params.dataset_name, self.key, self.max_rejected)

    def max_length(self, dataset: BaseMapDataset) -> int | None:
        """Returns how many tokens a row may have, None for documents that are cut when they are joined.

        Raises:
            ConfigError: Joined rows would be longer than the model takes, or are to be truncated.
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
            raise ConfigError(f"{self.key}.truncation: documents that are joined (seq_length) are not truncated")
        return None

    def row_tokenizer(self, dataset: BaseMapDataset, preprocessor: Preprocessor) -> RowTokenizer:
        """Returns what makes tokens of the rows of a data set."""
        template = Template(preprocessor.tokenizer, preprocessor.tokenizer.chat_template, self.began)
        image_encoder = preprocessor.image_encoder if self.takes_images else None
        return RowTokenizer(preprocessor.tokenizer, template, self.tokenize_spec(dataset), image_encoder)


def specs_of(plan: Plan, split: str, began: datetime) -> list[TableSpec]:
    """Returns the table of each data set of a split, `train` or `validation`."""
    mixed = plan.data.train if split == "train" else plan.data.validation
    return [
        TableSpec(
            params=params,
            model=plan.model,
            train_on=plan.data.train_on,
            truncation=mixed.truncation,
            key=f"data.{split}",
            max_rejected=mixed.max_rejected_rows,
            began=began,
            may_grow=may_grow(plan.data) and plan.steps.world_size == 1,  # one rank makes the tokens for all
            method=plan.method.name,
            takes_images=plan.is_native,
            tool_results=plan.data.tool_results,
        )
        for params in mixed.datasets
    ]


@dataclass(frozen=True)
class IdentifiedTable:
    """A table, and what it is known by when a run is resumed."""

    table: TokenTable | LazyTable | ConcatenatedTable
    identity: str
    supervision: TokenizeSpec
    """What its rows are to teach."""


def open_table(spec: TableSpec, preprocessor: Preprocessor, ledger: Ledger) -> IdentifiedTable:
    """Returns the table of a data set, and enters what became of its rows in a ledger.

    What was tokenized before is read. A large data set is tokenized by processes of its own; where any of its rows
    is found at once, the training begins meanwhile.

    Raises:
        DataError: More rows cannot be used than the split allows.
    """
    dataset = spec.dataset()
    opened = _open(spec, dataset, preprocessor, ledger)
    table, concatenation = opened.table, dataset.concatenation
    if concatenation is None:
        return opened
    assert isinstance(table, TokenTable), "what grows is not joined"
    try:
        joined = ConcatenatedTable(table, concatenation)
    except DataError as error:
        raise DataError(f"{ledger.dataset}: {error}") from None
    ledger.counts = joined.account(ledger.counts)
    return replace(
        opened,
        table=joined,
        identity=digest_of_values({"rows": opened.identity, "concatenation": asdict(concatenation)}),
    )


def _open(spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor, ledger: Ledger) -> IdentifiedTable:
    inputs = inputs_of(spec, dataset, preprocessor)
    supervision = spec.supervision(dataset)
    if inputs is None:
        table = tokenize_rows(dataset.rows(), spec.row_tokenizer(dataset, preprocessor), ledger)
        return IdentifiedTable(table, table.digest, supervision)
    folder, identity = token_cache(), identity_of(inputs)
    kept = find_table(folder, inputs)
    if kept is None:
        logger.info("%s is tokenized: %s", ledger.dataset, why_missed(folder, inputs))
        if _is_worth_processes(spec, dataset):
            making = _TableProcess(spec, folder, inputs, ledger)
            if _may_grow(spec, dataset):
                indexed = dataset.indexed()
                assert indexed is not None, "any row is found at once"
                growing = LazyTable(
                    indexed, dataset.value_of, spec.row_tokenizer(dataset, preprocessor), making, ledger
                )
                return IdentifiedTable(growing, identity, supervision)
            kept = making.wait()
        else:
            kept = make_table(spec, dataset, preprocessor, ledger)
    ledger.counts = Counts.from_state(kept.ledger)
    ledger.close()
    return IdentifiedTable(kept, identity, supervision)


def make_table(
    spec: TableSpec,
    dataset: BaseMapDataset,
    preprocessor: Preprocessor,
    ledger: Ledger,
    num_workers: int = 1,
    parent: int | None = None,
) -> TokenTable:
    """Returns the table of a data set, which is made now, unless another process has made it meanwhile.

    Args:
        spec: What is to be in it.
        dataset: Whose rows.
        preprocessor: Of the run.
        ledger: The account of its rows.
        num_workers: Processes that do the work.
        parent: The process that waits for the table; once it is gone the work ends.
    """
    inputs, folder = inputs_of(spec, dataset, preprocessor), token_cache()
    assert inputs is not None, "only stored rows are kept"
    with lock_table(folder, inputs):
        kept = find_table(folder, inputs)
        if kept is not None:
            return kept
        indexed = dataset.indexed() if num_workers > 1 else None
        raw = None if indexed is not None else dataset.raw_rows()
        chunks = chunks_of(raw, indexed, dataset.value_of, spec.row_tokenizer(dataset, preprocessor), num_workers)
        unchanged = _if_unchanged(_until_parent_ends(chunks, parent), dataset, ledger)
        return keep_table(folder, inputs, unchanged, ledger)


def inputs_of(spec: TableSpec, dataset: BaseMapDataset, preprocessor: Preprocessor) -> Inputs | None:
    """Returns all that decides what is in a table, None where code that is no file decides it."""
    content = dataset.content()
    if content is None:
        return None
    template = spec.row_tokenizer(dataset, preprocessor).renderer.template
    params = spec.params
    return {
        "dataset": [params.dataset_name, params.dataset_path, params.subset, params.split],
        "place of images": _place_of(params) if preprocessor.image_encoder is not None else None,
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
    }


def _place_of(params: DatasetParams) -> list[str]:
    """Returns what relative paths of images are relative to: where the process runs, and where the data stands."""
    return [os.getcwd(), str(Path(params.dataset_path or "").expanduser().absolute())]


class _TableProcess:
    """A process that makes a table beside this one."""

    def __init__(self, spec: TableSpec, folder: Path, inputs: Inputs, ledger: Ledger) -> None:
        self._folder, self._inputs, self._ledger = folder, inputs, ledger
        command = [sys.executable, "-m", "oumi.core.data.build"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)  # the training goes before it
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(pickle.dumps(spec))
        self._process.stdin.close()

    def poll(self) -> TokenTable | None:
        """Returns the table once it is complete; raises DataError if rows cannot be used."""
        return None if self._process.poll() is None else self._result()

    def wait(self) -> TokenTable:
        """Returns the table when it is complete; raises as `poll` does."""
        return self._result()

    def stop(self) -> None:
        """Ends the work."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _result(self) -> TokenTable:
        assert self._process.stdout is not None, "it is a pipe"
        output = self._process.stdout.read()
        status = self._process.wait()
        if output:
            failure = json.loads(output)
            self._ledger.counts = Counts.from_state(failure["counts"])
            raise DataError(failure["error"])
        table = find_table(self._folder, self._inputs) if status == 0 else None
        if table is None and status == 0:
            raise DataError(f"{self._ledger.dataset}: {CHANGED}")
        if table is None:
            raise StorageError(f"{self._folder}: the process that tokenizes ended with status {status}; see above")
        return table


def _is_worth_processes(spec: TableSpec, dataset: BaseMapDataset) -> bool:
    is_requested = spec.params.transform_num_workers is not None and _num_workers(spec) > 1
    is_importable = type(dataset).__module__.startswith(("oumi.", EXTRA_MODULE))
    return is_importable and (is_requested or dataset.stored.is_large)


def _may_grow(spec: TableSpec, dataset: BaseMapDataset) -> bool:
    """Returns True if each row is sure to come to one example, and any of them is found at once."""
    if dataset.concatenation is not None:
        return False
    is_single = spec.truncation != "split" if dataset.holds == "chats" else spec.truncation not in (None, "split")
    return is_single and spec.may_grow and spec.max_rejected == 0 and dataset.indexed() is not None


def _num_workers(spec: TableSpec) -> int:
    num_workers = spec.params.transform_num_workers
    return num_workers if isinstance(num_workers, int) else min(_MAX_WORKERS, os.cpu_count() or 1)


def _until_parent_ends(chunks: Iterator[Chunk], parent: int | None) -> Iterator[Chunk]:
    for chunk in chunks:
        if parent is not None and os.getppid() != parent:
            raise SystemExit(1)
        yield chunk


def _if_unchanged(chunks: Iterator[Chunk], dataset: BaseMapDataset, ledger: Ledger) -> Iterator[Chunk]:
    """Yields chunks; raises DataError if the files are others by then, so that none is kept under a wrong name."""
    before = dataset.content()
    yield from chunks
    if dataset.content() != before:
        raise DataError(f"{ledger.dataset}: {CHANGED}")


def _main() -> None:
    spec: TableSpec = pickle.loads(sys.stdin.buffer.read())
    ledger = spec.ledger()
    try:
        make_table(spec, spec.dataset(), load_preprocessor(spec.model), ledger, _num_workers(spec), os.getppid())
    except OumiError as error:
        print(json.dumps({"error": str(error), "counts": ledger.counts.to_state()}))


if __name__ == "__main__":
    _main()
