# SPDX-License-Identifier: Apache-2.0
"""The commands that use what was trained, and that prepare a training."""

from __future__ import annotations

import typer

from oumi.cli.chat import chat
from oumi.cli.config import EXTRA
from oumi.cli.evaluate import evaluate
from oumi.cli.export import export
from oumi.cli.infer import infer
from oumi.cli.launch import launch_app, status
from oumi.cli.merge import merge
from oumi.cli.tokenizer import tokenizer_app


def add_commands(app: typer.Typer) -> None:
    """Adds the commands beside the training to the command line."""
    app.command()(chat)
    app.command(context_settings=EXTRA)(infer)
    app.command()(merge)
    app.command()(export)
    app.command("eval")(evaluate)
    app.command("evaluate", hidden=True)(evaluate)  # its name in Oumi
    app.add_typer(tokenizer_app, name="tokenizer")
    app.add_typer(launch_app, name="launch")
    app.command(hidden=True)(status)  # short for `oumi launch status`
