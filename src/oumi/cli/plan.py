# SPDX-License-Identifier: Apache-2.0
"""`oumi plan`: shows what a run will do, without torch."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def plan(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", "-c", help="Config file, recipe or oumi:// name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a run will do: steps, batch sizes, precision, memory, disk. Any key of the config can be overridden."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.inspect import gather_facts
    from oumi.core.plan.plan import make_plan
    from oumi.core.plan.refusals import load_checked
    from oumi.core.plan.render import plan_json, plan_text
    from oumi.core.recipes import resolve_config

    loaded = load_checked(resolve_config(config), parse_overrides(context.args))
    run_plan = make_plan(loaded, gather_facts(loaded))
    typer.echo(json.dumps(plan_json(run_plan), indent=1) if as_json else plan_text(run_plan))
