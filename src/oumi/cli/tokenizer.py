# SPDX-License-Identifier: Apache-2.0
"""`oumi tokenizer`: trains a tokenizer for a model that is trained from scratch."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

tokenizer_app = typer.Typer(help="Train tokenizers.", no_args_is_help=True)


@tokenizer_app.callback()
def _group() -> None:
    """Train tokenizers."""  # a group with a single command needs a callback to stay a group


@tokenizer_app.command()
def train(
    data: Annotated[list[str], typer.Argument(help="Files, directories or patterns: text, JSON Lines, Parquet, CSV.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New directory of the tokenizer.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 32_000,
    end_token: Annotated[str, typer.Option(help="Special token that ends a document.")] = "<|endoftext|>",
    special: Annotated[
        list[str] | None, typer.Option("--special", help="Further special token; may be given several times.")
    ] = None,
    byte_fallback: Annotated[
        bool, typer.Option("--byte-fallback", help="Characters with bytes for rare ones, instead of bytes throughout.")
    ] = False,
    column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a row of training.", show_default="no limit")
    ] = None,
) -> None:
    """Train a byte-pair tokenizer on texts, and write it as Hugging Face files."""
    # Imported here: they load transformers.
    from oumi.core.configs import DatasetParams
    from oumi.core.data.datasets.lookup import dataset_for
    from oumi.core.data.tokenize.tokenizer_training import (
        TextCounts,
        TokenizerSpec,
        check_vacant,
        save_tokenizer,
        train_tokenizer,
    )

    spec = TokenizerSpec(vocab_size, end_token, tuple(special or ()), byte_fallback, max_length)
    spec.check()
    check_vacant(output)
    kwargs = {"dataset_text_field": column, "sample_by": "paragraph"}  # a text file may be large
    datasets = [
        dataset_for(DatasetParams(dataset_name="text", dataset_path=path, dataset_kwargs=kwargs)) for path in data
    ]
    counts = TextCounts()
    tokenizer = train_tokenizer(chain.from_iterable(dataset.rows() for dataset in datasets), spec, counts)
    save_tokenizer(tokenizer, output)
    typer.echo(f"{output}: {len(tokenizer):,} tokens, from {counts.texts:,} texts of {counts.characters:,} characters")
