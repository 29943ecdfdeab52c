# SPDX-License-Identifier: Apache-2.0
"""The table of commands, and the only place that converts an OumiError to an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from oumi import __version__
from oumi.cli.config import EXTRA, config_app
from oumi.cli.data import data_app
from oumi.cli.distributed import distributed_app
from oumi.cli.env import env
from oumi.cli.plan import plan
from oumi.cli.quickstart import quickstart
from oumi.cli.train import train
from oumi.cli.using import add_commands
from oumi.core import log
from oumi.core.system import host
from oumi.core.system.exits import exits_explained
from oumi.core.system.terminal import lasting_output

app = typer.Typer(
    name="oumi",
    help="Train language models from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, which may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(context_settings=EXTRA)(lasting_output()(train))
app.command(context_settings=EXTRA)(plan)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(distributed_app, name="distributed")
app.command()(lasting_output()(quickstart))
add_commands(app)
app.command()(env)

_TRAINING_COMMANDS = {"train", "plan", "quickstart"}


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    log_level: Annotated[str, typer.Option("--log-level", "-log", help="debug, info, warning, error.")] = "info",
) -> None:
    """Train language models from one YAML file."""
    if log_level.lower() not in log.LEVELS:
        raise typer.BadParameter(f"got '{log_level}', must be one of {', '.join(log.LEVELS)}", param_hint="--log-level")
    log.start_console(log_level)


def run() -> None:
    """Runs the command line; prints a problem that the user can fix without a traceback."""
    if _TRAINING_COMMANDS & set(sys.argv):
        host.tighten_heap()  # restarts the process, so before torch is imported; a plan estimates its memory
    with exits_explained():
        app()
