# SPDX-License-Identifier: Apache-2.0
"""`oumi config`: checks a file, shows its resolved values, prints its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from oumi.core.errors import ConfigError, Problem

config_app = typer.Typer(help="Check and show config files.", no_args_is_help=True)
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of commands with overrides: typer leaves options that it does not know in `context.args`."""


@config_app.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Config files, recipes or oumi:// names.")],
) -> None:
    """Check config files and report all problems."""
    failed = False
    # All files are checked, and the exit code is that of a ConfigError if any has a problem.
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

    # Imported in the command, as in all commands: `oumi --help` needs none of it.
    path = resolve_config(file, kind_of(file))
    config = class_of(path).load(path, parse_overrides(context.args))
    for key, value in redact(to_plain(leaves(config))).items():
        origin = config.origin_of(key)
        if not set_only or origin != "default":
            typer.echo(f"{key}: {json.dumps(value, ensure_ascii=False)}  # {origin}")


@config_app.command()
def schema(kind: Annotated[str, typer.Option(help="training, inference or job")] = "training") -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from oumi.core.configs import InferenceConfig, JobConfig, TrainingConfig

    classes = {"training": TrainingConfig, "inference": InferenceConfig, "job": JobConfig}
    if kind not in classes:
        raise ConfigError(f"--kind: got '{kind}', must be training, inference or job")
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **classes[kind].model_json_schema()}
    typer.echo(json.dumps(document, indent=1))


def check_file(name: str) -> list[Problem]:
    """Returns the keys of a job that must still be set at launch; raises ConfigError with all problems of a file."""
    from oumi.core.configs import InferenceConfig, JobConfig
    from oumi.core.plan.refusals import load_checked
    from oumi.core.recipes import resolve_config

    path = resolve_config(name, kind_of(name))
    if class_of(path) is JobConfig:
        return JobConfig.from_yaml(path).missing_at_launch()
    if class_of(path) is InferenceConfig:
        InferenceConfig.from_yaml(path)
        return []
    load_checked(path)
    return []


def class_of(path: Path):  # type: ignore[no-untyped-def]  # one of three classes, imported late
    """Returns the class of a config file, by its top-level keys."""
    from oumi.core.configs import InferenceConfig, JobConfig, TrainingConfig
    from oumi.core.configs.loading import read_text

    # By lines, not by YAML: a file that is not valid YAML has a kind, too.
    lines = read_text(path).splitlines()
    if any(line.startswith(("run:", "resources:")) for line in lines):
        return JobConfig
    is_training = any(line.startswith(("training:", "data:")) for line in lines)
    is_inference = any(line.startswith(("generation:", "engine:", "input_path:")) for line in lines)
    return InferenceConfig if is_inference and not is_training else TrainingConfig


def kind_of(name: str) -> str:
    """Returns `job` for the name of a job file, `training` for any other."""
    return "job" if Path(name).name.endswith("job.yaml") else "training"
