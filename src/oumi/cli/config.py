# SPDX-License-Identifier: Apache-2.0
"""`oumi config`: check a file, show what it resolves to, write its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oumi.core.errors import ConfigError, Problem

config_app = typer.Typer(help="Check and show config files.", no_args_is_help=True)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


@config_app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Config files, recipes or oumi:// names.")],
) -> None:
    """Check config files; every problem of each is told."""
    failed = False
    for name in files:
        try:
            notes = check_file(name)
            typer.echo("\n".join([f"{name}: OK", *(f"  note: {note}" for note in notes)]))
        except ConfigError as error:
            failed = True
            typer.echo(str(error), err=True)
    if failed:
        raise typer.Exit(2)


@config_app.command(context_settings=EXTRA)
def show(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="Config file, recipe or oumi:// name.")],
    set_only: Annotated[bool, typer.Option("--set-only", help="Leave defaults out.")] = False,
) -> None:
    """Show every value of a config and where it comes from. Overrides may follow."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.configs.loading import leaves, to_plain
    from oumi.core.recipes import resolve_config
    from oumi.core.system.redact import redact

    path = resolve_config(file, kind_of(file))
    config = class_of(path).load(path, parse_overrides(context.args))
    for key, value in redact(to_plain(leaves(config))).items():
        origin = config.origin_of(key)
        if not set_only or origin != "default":
            typer.echo(f"{key}: {json.dumps(value, ensure_ascii=False)}  # {origin}")


@config_app.command()
def schema(kind: Annotated[str, typer.Option(help="training or job")] = "training") -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from oumi.core.configs import JobConfig, TrainingConfig

    classes = {"training": TrainingConfig, "job": JobConfig}
    if kind not in classes:
        raise ConfigError(f"--kind: got '{kind}', must be training or job")
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **classes[kind].model_json_schema()}
    typer.echo(json.dumps(document, indent=1))


def check_file(name: str) -> list[Problem]:
    """Returns what a file leaves to whoever launches it; raises ConfigError with every problem."""
    from oumi.core.configs import JobConfig
    from oumi.core.plan.refusals import load_checked
    from oumi.core.recipes import resolve_config

    path = resolve_config(name, kind_of(name))
    if class_of(path) is JobConfig:
        return JobConfig.from_yaml(path).missing_at_launch()
    load_checked(path)
    return []


def class_of(path: Path):  # type: ignore[no-untyped-def]  # one of two classes, imported late
    """Returns the class of a config file, by its top keys."""
    from oumi.core.configs import JobConfig, TrainingConfig
    from oumi.core.configs.loading import read_text

    lines = read_text(path).splitlines()
    is_job = any(line.startswith(("run:", "resources:")) for line in lines)
    return JobConfig if is_job else TrainingConfig


def kind_of(name: str) -> str:
    """Returns `job` for a file that is named so."""
    return "job" if Path(name).name.endswith("job.yaml") else "training"
