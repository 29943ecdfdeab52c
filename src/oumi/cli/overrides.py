# SPDX-License-Identifier: Apache-2.0
"""`--training.learning_rate 1e-4` and its like, as overrides of a config."""

from __future__ import annotations

import re
from collections.abc import Sequence

from oumi.core.configs.overrides import Override
from oumi.core.errors import ConfigError, Problem


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Returns the overrides in the arguments that no option took.

    `--a.b 1`, `--a.b=1`, `--a.b[0].c x`, `--a.flag` for true, `--no-a.flag` for false. `--local-rank` of old
    launchers is dropped.

    An argument that is none of these is malformed, which is told together with what is wrong with the file.
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
            if not equals and waiting and not waiting[0].startswith("--"):
                waiting.pop(0)
            continue
        if not equals and name.startswith("no-"):
            name, text = name.removeprefix("no-"), "false"
        elif not equals:
            text = waiting.pop(0) if waiting and not _is_flag(waiting[0]) else "true"
        overrides.append(Override(name, text, flag.partition("=")[0]))
    return overrides


def refuse_malformed(overrides: Sequence[Override]) -> None:
    """Raises ConfigError with the arguments that are no overrides, where there is no file to tell them with."""
    if malformed := [Problem("", override.malformed, override.flag) for override in overrides if override.malformed]:
        raise ConfigError(malformed, "command line")


def _usage(argument: str) -> str:
    """Returns what an argument that is no flag was probably meant to be."""
    if argument.endswith((".yaml", ".yml")):
        return f"wanted --section.key value; a config file is named with -c {argument}"
    if re.fullmatch(r"[a-z_]+(\.[a-z_]+|\[\d+\])+=.*", argument):
        return f"wanted --section.key value, did you mean '--{argument}'?"
    return "wanted --section.key value"


def _is_flag(text: str) -> bool:
    return text.startswith("--") and len(text) > 2 and not text[2:3].isdigit()
