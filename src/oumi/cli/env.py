# SPDX-License-Identifier: Apache-2.0
"""`oumi env`: versions, devices and variables, to be pasted into a bug report."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from oumi.core.system.environment import PACKAGES, describe_environment


def env(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, all packages included.")] = False,
) -> None:
    """Show versions, devices and environment variables. Secrets are masked."""
    found = describe_environment()
    typer.echo(json_text.dumps(found, indent=2) if json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> Iterable[str]:
    device, git = found["device"], found["git"]
    yield f"Oumi      {found['packages'].get('oumi', 'not installed')}"
    yield f"Python    {found['python']}"
    yield f"Platform  {found['platform']}"
    bf16 = "with" if device["has_bf16"] else "without"
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB, {bf16} bfloat16"
    yield f"Device    {device['device']}: {device['device_name']}, {memory}; {device['num_cpus']} CPUs"
    for i, gpu in enumerate(found["gpus"]):
        yield f"GPU {i}     {gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}"
    if git:
        yield f"Git       {git['commit']} ({git['branch']}{', changed' if git['is_changed'] else ''})"
    yield from ("", "Packages")
    yield from _table((name, found["packages"].get(name, "-")) for name in PACKAGES)
    yield from ("", "Environment variables")
    yield from _table(found["environment"].items()) if found["environment"] else ["  none that matter here"]


def _table(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
