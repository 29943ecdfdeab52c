# SPDX-License-Identifier: Apache-2.0
"""Parses options such as `--training.learning_rate 1e-4` to overrides of a config."""

from __future__ import annotations

import re
from collections.abc import Sequence

from oumi.core.configs.overrides import Override
from oumi.core.errors import ConfigError, Problem


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Returns the overrides in the arguments that are no options of a command.

    `--a.b 1`, `--a.b=1`, `--a.b[0].c x`, `--a.flag` for true, `--no-a.flag` for false. Any other argument becomes an
    override that is malformed, so that it is reported together with the problems of the file.
    """
    overrides: list[Override] = []
    waiting = list(arguments)
    while waiting:
        flag = waiting.pop(0)
        name, equals, text = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not name:
            overrides.append(Override("", "", flag, malformed=_usage(flag)))
            continue
        if name.startswith(("local-rank", "local_rank")):
            # Old launchers of torch add it; the rank is read from the environment.
            if not equals and waiting and not waiting[0].startswith("--"):
                waiting.pop(0)
            continue
        if not equals and name.startswith("no-"):
            name, text = name.removeprefix("no-"), "false"
        elif not equals:
            # The next argument is the value, unless it is a flag itself; `--5` is a value.
            has_value = bool(waiting) and re.match(r"--\D", waiting[0]) is None
            text = waiting.pop(0) if has_value else "true"
        overrides.append(Override(name, text, flag.partition("=")[0]))
    return overrides


def refuse_malformed(overrides: Sequence[Override]) -> None:
    """Raises ConfigError with all malformed arguments, for commands without a file that reports them."""
    if malformed := [Problem("", override.malformed, override.flag) for override in overrides if override.malformed]:
        raise ConfigError(malformed, "command line")


def _usage(argument: str) -> str:
    """Returns the message for an argument that is not a flag."""
    if argument.endswith((".yaml", ".yml")):
        return f"expected --section.key value; a config file is passed with -c {argument}"
    if re.fullmatch(r"[a-z_]+(\.[a-z_]+|\[\d+\])+=.*", argument):
        return f"expected --section.key value, did you mean '--{argument}'?"
    return "expected --section.key value"
