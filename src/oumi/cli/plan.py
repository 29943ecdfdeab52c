# SPDX-License-Identifier: Apache-2.0
"""`oumi plan`: shows what a run will do, without torch, on this machine or on one that is not there."""

from __future__ import annotations

import json
from typing import Annotated

import typer

_USUAL_GPUS = 8


def plan(
    context: typer.Context,
    config: Annotated[str, typer.Option("--config", "-c", help="Config file, recipe or oumi:// name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    world_size: Annotated[int, typer.Option("--world-size", help="Number of processes, one for each GPU.")] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", help="Processes of a machine: 8, or all if they are fewer.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="Device of the machines, such as h100-80gb.")] = None,
) -> None:
    """Show what a run will do: steps, batch sizes, precision, memory, disk, and what its ranks send to each other.

    Any key of the config can be overridden.
    """
    from oumi.cli.overrides import parse_overrides
    from oumi.core.inspect import gather_facts
    from oumi.core.plan.plan import make_plan
    from oumi.core.plan.refusals import load_checked
    from oumi.core.plan.render import plan_json, plan_text
    from oumi.core.recipes import resolve_config
    from oumi.core.system.devices import find_machine

    ranks_per_node = _ranks_per_node(world_size, gpus_per_node)
    machine = None if device is None else find_machine(device)
    loaded = load_checked(resolve_config(config), parse_overrides(context.args))
    facts = gather_facts(loaded, local_size=ranks_per_node, machine=machine)
    run_plan = make_plan(loaded, facts, world_size, ranks_per_node)
    typer.echo(json.dumps(plan_json(run_plan), indent=1) if as_json else plan_text(run_plan))


def _ranks_per_node(world_size: int, gpus_per_node: int | None) -> int:
    """Returns the processes of a machine; raises ConfigError if all machines cannot have as many."""
    from oumi.core.errors import ConfigError

    for name, count in (("--world-size", world_size), ("--gpus-per-node", gpus_per_node)):
        if count is not None and count < 1:
            raise ConfigError(f"{name}: expected a number > 0, got {count}")
    count = min(world_size, _USUAL_GPUS) if gpus_per_node is None else gpus_per_node
    if world_size % count:
        near = [size for size in (world_size // count * count, (world_size // count + 1) * count) if size]
        nearest = f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(map(str, near))}"
        raise ConfigError(f"--world-size: expected a multiple of --gpus-per-node, {count}, got {world_size}; {nearest}")
    return count
