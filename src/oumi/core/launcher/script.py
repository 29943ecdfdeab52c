# SPDX-License-Identifier: Apache-2.0
"""The shell script of a job, in which every value arrives byte for byte."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping

from oumi.core.configs import JobConfig
from oumi.core.errors import ConfigError, Problem

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_BYTES = 128 * 1024 - 1
"""Of `NAME=value`: MAX_ARG_STRLEN of Linux, above which no program can be started with it."""
_OF_BASH = re.compile(
    "BASHOPTS|BASHPID|BASH_(ALIASES|ARGC|ARGV0?|CMDS|COMMAND|LINENO|SOURCE|SUBSHELL|VERSINFO)|COMP_WORDBREAKS|DIRSTACK|"
    "EPOCHREALTIME|EPOCHSECONDS|E?UID|FUNCNAME|GROUPS|HISTCMD|LINENO|(OLD)?PWD|OPTIND|PIPESTATUS|PPID|S?RANDOM|SECONDS|"
    "SHELLOPTS|SHLVL|_"
)
"""Variables that bash sets itself: a value does not arrive, or is computed as an expression, which runs code."""


def job_script(job: JobConfig, working_dir: str | None) -> str:
    """Returns setup and run as one bash script; the first command that fails ends it.

    Secrets are not part of it: a script is a file that others may read.
    """
    texts = {"setup": job.setup or "", "run": job.run}
    if problems := [Problem(key, reason) for key, text in texts.items() if (reason := not_storable(text))]:
        raise ConfigError(problems, "job")
    lines = ["#!/usr/bin/env bash", *exports(job.envs), "set -e"]
    if working_dir is not None:
        lines.append(f"cd -- {shlex.quote(working_dir)}")
    return "\n".join([*lines, *(part for part in (job.setup, job.run) if part)]) + "\n"


def exports(variables: Mapping[str, str]) -> list[str]:
    """Returns a line of bash for each variable. Raises ConfigError for what no process can have."""
    check_variables("envs", variables)
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def secret_values(job: JobConfig) -> dict[str, str]:
    """Returns the secrets of a job from the environment of this process; raises ConfigError if one is not set."""
    if unset := unset_secrets(job):
        raise ConfigError(unset, "job")
    values = {name: os.environ[name] for name in job.secrets}
    check_variables("secrets", values)
    return values


def unset_secrets(job: JobConfig) -> list[Problem]:
    """Returns the secrets of a job that the environment of this process lacks."""
    return [
        Problem(f"secrets.{name}", f"not set in your environment: `export {name}=...`")
        for name in job.secrets
        if name not in os.environ
    ]


def check_variables(key: str, variables: Mapping[str, str]) -> None:
    """Raises ConfigError for names that a shell does not take and for values that no process can have."""
    problems = []
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            problems.append(Problem(f"{key}.{name}", "expected letters, digits and _, with no digit first"))
        elif _OF_BASH.fullmatch(name):
            problems.append(Problem(f"{key}.{name}", "is set by bash itself; choose another name"))
        elif reason := not_storable(value):
            problems.append(Problem(f"{key}.{name}", reason))
        elif (size := len(os.fsencode(f"{name}={value}"))) > _MAX_BYTES:
            problems.append(Problem(f"{key}.{name}", f"has {size:,} bytes; a process takes at most {_MAX_BYTES:,}"))
    if problems:
        raise ConfigError(problems, "job")


def not_storable(text: str) -> str:
    """Returns why neither a script nor an environment can hold a text; empty if both can."""
    try:
        return "contains a NUL byte" if b"\0" in os.fsencode(text) else ""
    except UnicodeEncodeError as error:
        return f"contains U+{ord(text[error.start]):04X}, which is no character"
