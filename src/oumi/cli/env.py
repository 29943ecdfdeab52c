# SPDX-License-Identifier: Apache-2.0
"""`oumi env`: versions, devices and variables, for bug reports."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterable
from typing import Annotated, Any

import typer


def env(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, including all packages.")] = False,
) -> None:
    """Show versions, devices and environment variables. Secrets are masked."""
    from oumi.core.system.environment import PACKAGES, describe_environment

    facts = describe_environment()
    typer.echo(json_text.dumps(facts, indent=2) if json else "\n".join(_lines(facts, PACKAGES)))


def _lines(facts: dict[str, Any], packages: Iterable[str]) -> Iterable[str]:
    device, git = facts["device"], facts["git"]
    yield f"Oumi      {facts['packages'].get('oumi', 'not installed')}"
    yield f"Python    {facts['python']}"
    yield f"Platform  {facts['platform']}"
    # Decides whether mixed precision is of use on this device.
    bf16 = "with" if device["has_bf16"] else "without"
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB, {bf16} bfloat16"
    yield f"Device    {device['device']}: {device['device_name']}, {memory}; {device['num_cpus']} CPUs"
    for i, gpu in enumerate(facts["gpus"]):
        yield f"GPU {i}     {gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}"
    if git:
        yield f"Git       {git['commit']} ({git['branch']}{', changed' if git['is_changed'] else ''})"
    yield from ("", "Packages")
    yield from _table((name, facts["packages"].get(name, "-")) for name in packages)
    yield from ("", "Environment variables")
    yield from _table(facts["environment"].items()) if facts["environment"] else ["  none that change a run"]


def _table(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    """Returns indented lines with aligned values."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
