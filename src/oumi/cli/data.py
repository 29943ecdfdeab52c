# SPDX-License-Identifier: Apache-2.0
"""`oumi data`: shows, counts and checks the rows of a config as they will be trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oumi.cli.config import EXTRA

if TYPE_CHECKING:
    from rich.console import Console

    from oumi.core.data.checks.statistics import Statistics
    from oumi.core.data.training_data import TrainingData
    from oumi.core.plan.parts import Plan
    from oumi.core.types.example import Example

data_app = typer.Typer(help="Look at the rows of a config.", no_args_is_help=True)

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="Config file, recipe or oumi:// name.")]


class Split(StrEnum):
    """Which rows."""

    TRAIN = "train"
    VALIDATION = "validation"


def preview(
    context: typer.Context,
    config: ConfigOption,
    split: Annotated[Split, typer.Option(help="Which rows.")] = Split.TRAIN,
    rows: Annotated[
        int | None, typer.Option(min=1, help="How many rows.", show_default="3, with --json all of an epoch")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Draw every token of long rows.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines: one object per document, then the ledgers.")
    ] = False,
) -> None:
    """Draw the first rows that will be trained, token by token; trained tokens are colored and in brackets."""
    # A stream has no known end, so its rows are stored if all of them are to be printed.
    plan, data = _loaded(config, context.args, keeps=as_json and rows is None)
    count = rows or (sys.maxsize if as_json else 3)
    epoch = data.validation
    first = data.first(plan, count) if split == Split.TRAIN else map(epoch.group, range(min(count, len(epoch))))
    if as_json:
        _print_documents(first, data, is_pair=plan.method.spec.term == "pair")
    else:
        _draw_rows(first, plan, data, split, full)


def _print_documents(rows: Iterable[Sequence[Example]], data: TrainingData, is_pair: bool) -> None:
    """Prints each document as in a batch, as JSON Lines, then the ledgers of all splits.

    A document has `row` (its index in the order), `ids`, `labels` (-100 for tokens that are not trained) and `source`;
    in a pair `answer`, `chosen` or `rejected`; for images `features`: by name, the shape, mean and standard deviation
    of each input of the model.
    """
    from oumi.core.batch import IGNORED

    for number, examples in enumerate(rows):
        documents = (document for example in examples for document in example.documents())
        for place, document in enumerate(documents):
            batch = data.preprocessor.collate([document])
            record: dict[str, Any] = {
                "row": number,
                "source": str(document.source),
                "ids": batch.tokens.tolist(),
                "labels": [IGNORED, *batch.targets.tolist()[:-1]],  # a target is the token that follows
            }
            if is_pair:
                record["answer"] = ("chosen", "rejected")[place]
            if batch.features:
                record["features"] = {
                    name: {
                        "shape": list(tensor.shape),
                        "mean": tensor.double().mean().item(),
                        # The standard deviation of a single number is NaN, which is not JSON.
                        "std": tensor.double().std().item() if tensor.numel() > 1 else None,
                    }
                    for name, tensor in batch.features.items()
                }
            typer.echo(json.dumps(record))
    data.close(may_wait=True)
    ledgers = {split: [ledger.to_dict() for ledger in ledgers] for split, ledgers in data.ledgers.items() if ledgers}
    typer.echo(json.dumps({"ledgers": ledgers}))


def _draw_rows(rows: Iterable[Sequence[Example]], plan: Plan, data: TrainingData, split: Split, is_full: bool) -> None:
    """Prints the documents of each row, then the number of rejected rows."""
    from oumi.cli import drawing

    out = drawing.console()
    drawing.draw_note(out, drawing.LEGEND, indent=0, style="bright_black")
    for number, examples in enumerate(rows, 1):
        documents = [(example, document) for example in examples for document in example.documents()]
        if len(documents) > 1:
            size = sum(len(document.tokens) for _, document in documents)
            drawing.rule(out, f"row {number}: {len(documents)} documents, {drawing.counted(size, 'token')}")
        for place, (example, document) in enumerate(documents):
            name = f"document {place + 1}" if len(documents) > 1 else f"row {number}"
            if plan.method.spec.term == "pair":
                name = ("chosen", "rejected")[place]
            num_targets = int(document.is_target.sum())
            size_text = f"{drawing.counted(len(document.tokens), 'token')}, {num_targets:,} trained"
            width = out.width - len(name) - len(size_text) - 9  # 9 characters of the rule and its punctuation
            drawing.rule(out, f"{name}: {drawing.shortened(str(document.source), max(width, 12))}, {size_text}")
            drawing.draw_document(out, document, data.preprocessor.tokenizer, is_full)
            if example.num_cut and place + 1 == len(documents):
                cut = drawing.counted(example.num_cut, "token")
                drawing.draw_note(out, f"✂ truncated: {cut} of this row cut off", 0, "bold red")
    data.close()
    num_rejected = sum(ledger.counts.rejected for ledger in data.ledgers[split])
    if num_rejected:
        rejected = drawing.counted(num_rejected, "row")
        drawing.draw_note(out, f"✗ {rejected} cannot be used: see oumi data validate", 0, "red")


def stats(
    context: typer.Context,
    config: ConfigOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count rows and tokens, plot their lengths, and list truncated, rejected and duplicate rows."""
    from oumi.cli import drawing
    from oumi.core.data.build_stream import StreamedRows
    from oumi.core.data.checks.statistics import describe
    from oumi.core.data.pipeline.packing import Packed

    plan, loaded = _loaded(config, context.args, keeps=True)
    loaded.close(may_wait=True)
    out, report = drawing.console(), dict[str, Any]()
    for split, epoch in (("train", loaded.train), ("validation", loaded.validation)):
        assert not isinstance(epoch, StreamedRows), "a stream is stored, so that it can be counted"
        if not len(epoch):
            continue
        total = describe(epoch.parts)
        parts = [describe([part]) for part in epoch.parts]
        ledgers = [account.to_dict() for account in loaded.ledgers[split]]
        packed = {"rows": len(epoch), "empty_share": epoch.empty_share} if isinstance(epoch, Packed) else None
        duplicates = loaded.duplicates.get(split, {})
        report[split] = {
            **total.to_dict(),
            "packed": packed,
            "duplicates": duplicates,
            "datasets": [{**ledger, "epoch": part.to_dict()} for ledger, part in zip(ledgers, parts, strict=True)],
        }
        if not as_json:
            drawing.rule(out, split)
            _print_datasets(out, ledgers, parts)
            _print_epoch(out, plan, total, packed)
            _print_duplicates(
                out, duplicates, [account.dataset for accounts in loaded.ledgers.values() for account in accounts]
            )
    if as_json:
        typer.echo(json.dumps(report, indent=1))


def validate(context: typer.Context, config: ConfigOption) -> None:
    """Read and check all rows; unusable rows end the command with exit code 65."""
    from datetime import datetime

    from oumi.cli import drawing
    from oumi.core.data.ledger import Ledger
    from oumi.core.data.validate import problems_of
    from oumi.core.errors import DataError

    # Filled while the rows are read.
    ledgers: dict[str, list[Ledger]] = {"train": [], "validation": []}
    problems = problems_of(_planned(config, context.args), datetime.now(), ledgers)
    out = drawing.console()
    rows = [("data set", "split", "read", "= trained", "+ truncated", "+ rejected")]
    for split, of_split in ledgers.items():
        for account in of_split:
            counts = account.counts
            numbers = (counts.read, counts.trained, counts.truncated, counts.rejected)
            rows.append((account.dataset, split, *(f"{number:,}" for number in numbers)))
    drawing.draw_table(out, rows)
    for counts in (account.counts for of_split in ledgers.values() for account in of_split):
        for line in counts.shown:
            drawing.draw_note(out, f"✗ {line}", style="red")
        if (more := counts.rejected - len(counts.shown)) > 0:
            drawing.draw_note(out, f"✗ ... and {drawing.counted(more, 'row')} more", style="red")
    if problems:
        listed = "\n".join(problems)
        raise DataError(f"{drawing.counted(len(problems), 'problem')} of the rows\n{listed}")
    typer.echo("no problem")


for _command in (preview, stats, validate):
    data_app.command(context_settings=EXTRA)(_command)


def _planned(config: str, arguments: list[str]) -> Plan:
    """Returns the plan of a config; its trainer need not be supported yet."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.inspect import gather_facts
    from oumi.core.plan.plan import make_plan
    from oumi.core.plan.refusals import load_checked
    from oumi.core.plan.trainer_kwargs import as_run
    from oumi.core.recipes import resolve_config

    loaded = as_run(load_checked(resolve_config(config), parse_overrides(arguments), reads_only=True))
    if loaded.data.validation.datasets and loaded.training.eval_strategy == "no":
        # A plan without evaluation would not contain the validation rows.
        loaded.training.eval_strategy = "epoch"
    return make_plan(loaded, gather_facts(loaded, may_download=True, counts_rows=False))


def _loaded(config: str, arguments: list[str], keeps: bool = False) -> tuple[Plan, TrainingData]:
    """Returns the plan of a config and its rows; unusable rows are counted and skipped.

    Args:
        config: Name of the config.
        arguments: Overrides.
        keeps: Store the rows of a stream, so that each is read exactly once.
    """
    from datetime import datetime

    plan = _planned(config, arguments)
    from oumi.core.data.training_data import read_training_data  # imports torch, so problems of the config come first

    # Unusable rows are shown instead of stopping the command.
    train, validation = (
        replace(mixture, max_rejected_rows=sys.maxsize) for mixture in (plan.data.train, plan.data.validation)
    )
    train = replace(train, stream=train.stream and not keeps)
    plan = replace(plan, data=replace(plan.data, train=train, validation=validation))
    return plan, read_training_data(plan, datetime.now())


def _print_datasets(out: Console, ledgers: list[dict[str, Any]], parts: list[Statistics]) -> None:
    """Prints the counts of each data set, its share of an epoch, and the tokens and rows that are lost."""
    from oumi.cli import drawing
    from oumi.core.data.checks.statistics import histogram, percentiles

    names = [part["dataset"] for part in ledgers]
    keys = ("read", "trained", "truncated", "rejected")
    drawing.draw_table(
        out,
        [
            ("data set", "read", "= trained", "+ truncated", "+ rejected"),
            *((name, *(f"{part['rows'][key]:,}" for key in keys)) for name, part in zip(names, ledgers, strict=True)),
        ],
    )
    # With a single data set, the totals of the epoch say the same.
    if len(parts) > 1:
        num_rows, num_tokens = (sum(getattr(part, fact) for part in parts) for fact in ("num_rows", "num_tokens"))
        epoch = [("in an epoch", "rows", "of all", "tokens", "of all", "trained")]
        spread = [("tokens a row", "min", "p50", "p90", "p99", "max", "")]
        for name, part in zip(names, parts, strict=True):
            shares = (
                part.num_rows / num_rows,
                part.num_tokens / num_tokens,
                part.num_targets / max(part.num_tokens, 1),
            )
            of_rows, of_tokens, trained = (f"{share:.1%}" for share in shares)
            epoch.append((name, f"{part.num_rows:,}", of_rows, f"{part.num_tokens:,}", of_tokens, trained))
            if part.num_rows:  # a mixture may draw no row of a small share
                line = f"{drawing.sparkline(histogram(part.lengths)):<13}"
                spread.append((name, *(f"{value:,}" for value in percentiles(part.lengths).values()), line))
        drawing.draw_table(out, epoch)
        drawing.draw_table(out, spread)
    for name, ledger in zip(names, ledgers, strict=True):
        _print_losses(out, drawing.shortened(name, 40), ledger)


def _print_losses(out: Console, name: str, ledger: dict[str, Any]) -> None:
    """Prints the truncated tokens and the rejected rows of a data set."""
    from oumi.cli import drawing

    tokens, targets = ledger["tokens"], ledger["targets"]
    if tokens["cut"]:
        drawing.draw_note(
            out,
            f"✂ {name}: {tokens['cut']:,} tokens cut off ({tokens['cut'] / tokens['read']:.1%}), "
            f"{targets['cut']:,} of them targets ({targets['cut'] / max(targets['read'], 1):.1%} of all targets)",
        )
    for reason, number in ledger["reasons"].items():
        drawing.draw_note(out, f"✗ {name}: {number:,} x {reason}")


def _print_epoch(out: Console, plan: Plan, statistics: Statistics, packed: dict[str, Any] | None) -> None:
    """Prints the totals of an epoch and the distribution of its lengths."""
    from oumi.cli import drawing
    from oumi.core.data.checks.statistics import histogram, percentiles

    share = statistics.num_targets / max(statistics.num_tokens, 1)
    unit = "pair" if plan.method.spec.term == "pair" else "row"
    drawing.draw_note(
        out,
        f"an epoch: {drawing.counted(statistics.num_rows, unit)}, {statistics.num_tokens:,} tokens, "
        f"{statistics.num_targets:,} of them trained ({share:.1%})",
    )
    if packed is not None:
        rows, length = drawing.counted(packed["rows"], "row"), plan.model.max_length
        drawing.draw_note(out, f"packed: {rows} of {length:,} tokens, {packed['empty_share']:.1%} of the places empty")
    # If all tokens or none are trained, their number per row says nothing new.
    spreads = [(f"tokens a {unit}", statistics.lengths), (f"trained tokens a {unit}", statistics.targets)]
    for name, values in spreads if 0 < share < 1 else spreads[:1]:
        line = "  ".join(f"{key} {value:,}" for key, value in percentiles(values).items())
        drawing.draw_note(out, f"{name}: {line}")
        drawing.draw_histogram(out, histogram(values))


def _print_duplicates(out: Console, duplicates: dict[str, Any], names: list[str]) -> None:
    """Prints the rows that occur more than once in the data; files are named without their folders."""
    from oumi.cli import drawing
    from oumi.core.data.checks.duplicates import DUPLICATE_KINDS

    for kind, repeats in duplicates.items():
        if repeats["rows"]:
            drawing.draw_note(out, f"! {DUPLICATE_KINDS[kind]}: {repeats['rows']:,}")
            for line in repeats["first"]:
                for name in names:
                    line = line.replace(name, Path(name).name)
                drawing.draw_note(out, line, indent=4)
    if not any(repeats["rows"] for repeats in duplicates.values()):
        drawing.draw_note(out, "no duplicates" + (", none of them trained" if "trained" in duplicates else ""))
