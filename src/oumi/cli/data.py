# SPDX-License-Identifier: Apache-2.0
"""`oumi data`: what a config's rows are, as they will be trained."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oumi.cli.config import EXTRA

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from oumi.core.data.statistics import Repeats, Statistics
    from oumi.core.plan.parts import Plan
    from oumi.core.trainers.rows import Rows
    from oumi.core.types.example import Example

data_app = typer.Typer(help="Look at the rows of a config.", no_args_is_help=True)

ConfigOption = Annotated[str, typer.Option("--config", "-c", help="Config file, recipe or oumi:// name.")]
_BAR_WIDTH = 40
_TARGETS, _OTHERS = ("bold green", "bold cyan"), ("default", "bright_black")
"""Styles of a token and of the one after it, so that their borders show."""


class Split(StrEnum):
    """Which rows."""

    TRAIN = "train"
    VALIDATION = "validation"


def preview(
    context: typer.Context,
    config: ConfigOption,
    split: Annotated[Split, typer.Option(help="Which rows.")] = Split.TRAIN,
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
) -> None:
    """Draw the first rows that will be trained, token by token: what is learned stands in colour and in brackets."""
    from rich.console import Console

    from oumi.core.data.loader import Loader

    plan, loaded = _loaded(config, context.args)
    epoch = loaded.train if split == Split.TRAIN else loaded.validation
    console = Console(highlight=False, soft_wrap=False)
    first = list(range(min(rows, len(epoch))))
    if split == Split.TRAIN:
        loader, first = Loader(epoch, plan.with_num_rows(len(epoch)).steps, plan.data.seed), []
        while len(first) < min(rows, len(epoch)):
            first += loader.rows_of(len(first) // plan.steps.rows_per_step)
    for number, index in enumerate(first[:rows], 1):
        documents = [one for example in epoch.group(index) for one in example.documents()]
        for part, one in enumerate(documents, 1):
            title = f"row {number}" + (f", document {part} of {len(documents)}" if len(documents) > 1 else "")
            _draw(console, one, loaded.tokenizer, title)
    loaded.close()


def stats(
    context: typer.Context,
    config: ConfigOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count and plot: rows, tokens, lengths, what is trained or cut, duplicates, rows that splits share."""
    from oumi.core.data.mixture import Mixture
    from oumi.core.data.statistics import describe, overlap

    _, loaded = _loaded(config, context.args)
    found = {
        split: describe(Mixture(epoch.parts))
        for split, epoch in (("train", loaded.train), ("validation", loaded.validation))
        if len(epoch)
    }
    loaded.close(may_wait=True)
    ledgers = {split: [one.to_dict() for one in loaded.ledgers[split]] for split in found}
    shared = overlap(found["train"], found["validation"]) if "validation" in found else None
    if as_json:
        made: dict[str, Any] = {split: {**one.to_dict(), "datasets": ledgers[split]} for split, one in found.items()}
        if shared is not None:
            made["shared"] = {"rows": shared.num_rows, "first": list(shared.named)}
        typer.echo(json.dumps(made, indent=1))
        return
    for split, one in found.items():
        _tell(split, one, ledgers[split])
    if shared is not None:
        typer.echo(f"train and validation share {_count(shared.num_rows, 'row')}")
        _name(shared)


def validate(context: typer.Context, config: ConfigOption) -> None:
    """Read every row and check what it teaches; rows that cannot be used end with exit code 65."""
    _, loaded = _loaded(config, context.args)
    loaded.close(may_wait=True)
    for split, ledgers in loaded.ledgers.items():
        for ledger in ledgers:
            counts = ledger.counts
            typer.echo(
                f"{split}: {ledger.dataset}: {_count(counts.read, 'row')} read = {counts.trained:,} trained "
                f"+ {counts.truncated:,} truncated + {counts.rejected:,} rejected"
            )
            for line in counts.shown:
                typer.echo(f"  {line}")
    typer.echo("no problem")


for _command in (preview, stats, validate):
    data_app.command(context_settings=EXTRA)(_command)


def _loaded(config: str, arguments: list[str]) -> tuple[Plan, Rows]:
    """Returns the plan of a config and its rows; every row is read and accounted for."""
    from datetime import datetime

    from oumi.cli.overrides import parse_overrides
    from oumi.core.configs import TrainingConfig
    from oumi.core.plan.plan import make_plan
    from oumi.core.plan.refusals import check
    from oumi.core.recipes import resolve_config

    loaded = TrainingConfig.load(resolve_config(config), parse_overrides(arguments))
    check(loaded)
    from oumi.core.survey import survey
    from oumi.core.trainers.rows import read_all

    plan = make_plan(loaded, survey(loaded, may_download=True))
    return plan, read_all(plan, datetime.now())


def _draw(console: Console, example: Example, tokenizer: Any, title: str) -> None:
    """Prints a document: its source and counts, then its tokens."""
    from rich.rule import Rule
    from rich.text import Text

    targets = int(example.is_target.sum())
    where = f"{title}: {example.source}, {_count(len(example.tokens), 'token')}, {targets:,} trained"
    console.print(Rule(Text(where), align="left", style="bright_black"))
    console.print(_drawn(example, tokenizer, Text()))


def _drawn(example: Example, tokenizer: Any, text: Text) -> Text:
    """Returns the tokens of a document, each in another shade than the one before; brackets open and close targets."""
    is_open = False
    for i, piece in enumerate(_pieces(example.tokens.tolist(), tokenizer)):
        is_target = bool(example.is_target[i])
        if is_target != is_open:
            text.append("⟦" if is_target else "⟧", style="bold yellow")
            is_open = is_target
        style = (_TARGETS if is_target else _OTHERS)[i % 2]
        text.append(_printable(piece), style=style)
    return text.append("⟧", style="bold yellow") if is_open else text


def _pieces(tokens: list[int], tokenizer: Any) -> list[str]:
    """Returns the text of each token; the bytes of one character stand with the last of them."""
    pieces, done, waiting = [], 0, list[int]()
    for i, token in enumerate(tokens):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and i - done < 4 and i + 1 < len(tokens):
            pieces.append("")
            continue
        pieces.append(text)
        done, waiting = i + 1, []
    return pieces


def _printable(text: str) -> str:
    """Returns a text whose control characters show; a line ends where it does, after a sign for it."""
    shown = "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )
    return shown.replace("\n", "↵\n")


def _tell(split: str, found: Statistics, ledgers: list[dict[str, Any]]) -> None:
    from oumi.core.data.statistics import histogram, percentiles

    share = found.num_targets / found.num_tokens if found.num_tokens else 0.0
    typer.echo(
        f"{split}: {_count(found.num_rows, 'row')} an epoch, {found.num_tokens:,} tokens, "
        f"{found.num_targets:,} of them trained ({share:.1%})"
    )
    for one in ledgers:
        rows, tokens = one["rows"], one["tokens"]
        typer.echo(
            f"  {one['dataset']}: {rows['read']:,} read = {rows['trained']:,} trained + {rows['truncated']:,} "
            f"truncated + {rows['rejected']:,} rejected; {one['examples']['drawn']:,} drawn an epoch"
        )
        if tokens["cut"]:
            typer.echo(f"    cut off: {tokens['cut']:,} tokens, {tokens['cut_targets']:,} of them targets")
        for reason, number in one["reasons"].items():
            typer.echo(f"    {number:,} x {reason}")
    for name, values in (("tokens a row", found.lengths), ("trained tokens a row", found.targets)):
        typer.echo(f"  {name}: " + ", ".join(f"{key} {value:,}" for key, value in percentiles(values).items()))
        bins = histogram(values)
        most, width = max(count for _, _, count in bins), len(f"{bins[-1][1]:,}")
        for low, high, count in bins:
            bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
            typer.echo(f"    {low:>{width},} - {high:<{width},} {count:>9,} {bar}".rstrip())
    typer.echo(f"  duplicates: {_count(found.repeats.num_rows, 'row')}")
    _name(found.repeats)


def _name(repeats: Repeats) -> None:
    for line in repeats.named:
        typer.echo(f"    {line}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")
