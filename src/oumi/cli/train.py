# SPDX-License-Identifier: Apache-2.0
"""`oumi train`: trains the model of a config."""

from __future__ import annotations

from typing import Annotated

import typer


def train(
    context: typer.Context,
    config: Annotated[str | None, typer.Option("--config", "-c", help="Config file, recipe or oumi:// name.")] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the available recipes.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the full config first.")] = False,
    num_procs: Annotated[str | None, typer.Option("--nproc-per-node", help="Processes, or auto: one per GPU.")] = None,
) -> None:
    """Train a model. Any key of the config can be overridden: --training.learning_rate 1e-4."""
    from oumi.cli.distributed import start_here
    from oumi.cli.overrides import parse_overrides, refuse_malformed
    from oumi.core import log, recipes
    from oumi.core.configs.loading import read_text
    from oumi.core.plan.refusals import load_checked
    from oumi.core.system import host

    if list_recipes:
        typer.echo("\n".join(recipe.name for recipe in recipes.list_recipes() if recipe.kind == "training"))
        return
    overrides = parse_overrides(context.args)
    if config is None:
        refuse_malformed(overrides)
        raise typer.BadParameter("missing; expected a config file or a recipe", param_hint="--config / -c")
    path = recipes.resolve_config(config)
    loaded = load_checked(path, overrides)  # before torch is imported: a typo is reported immediately
    if num_procs is not None:
        return start_here(num_procs, context, f"--config={config}", *["--verbose"] * verbose)
    host.let_waiting_threads_sleep()
    from oumi.core.plan.custom import custom_model
    from oumi.core.train import train as run_training

    result = run_training(loaded, verbose=verbose, source=read_text(path))
    if log.current_rank() != 0:
        return
    loss = f", loss {result.metrics['loss']:.4f}" if "loss" in result.metrics else ""
    typer.echo(f"\nDone after {result.steps} steps{loss}: {result.output_dir}")
    if (training := loaded.training).save_final_model and custom_model(loaded.model.model_name) is None:
        typer.echo(f"  chat with it:  oumi chat {result.output_dir}")
    if training.enable_tensorboard:
        typer.echo(f"  view metrics:  tensorboard --logdir {training.logging_dir or result.output_dir / 'tensorboard'}")
