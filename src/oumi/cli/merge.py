# SPDX-License-Identifier: Apache-2.0
"""`oumi merge`: makes a plain model of an adapter and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    adapter: Annotated[str, typer.Argument(help="Directory or Hub name of an adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the merged model; it must not exist.")],
    base: Annotated[str | None, typer.Option(help="The base model, instead of the one that the adapter names.")] = None,
) -> None:
    """Merge an adapter into its base model, in full precision, and prove that both compute the same."""
    from oumi.core.results.merge import merge as write_merged
    from oumi.core.system.filesystem import expanded

    write_merged(adapter, expanded(str(output)), base)
    typer.echo(f"merged, and compared with {adapter} on its base: {output}")
