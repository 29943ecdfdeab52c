# SPDX-License-Identifier: Apache-2.0
"""What a user can mend: one family of errors, and how a problem is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in the user's words."""

    key: str
    """What it is about: a dotted config key, a path, or a row."""
    message: str
    """What was found, what was wanted, and the nearest right name."""
    place: str = ""
    """Where it stands: `file:line:column`, or the flag that set it."""

    def __str__(self) -> str:
        return " ".join(part for part in (self.place, f"{self.key}:" if self.key else "", self.message) if part)


class OumiError(Exception):
    """A problem that the user can mend: the command line prints it bare and exits with `exit_code`."""

    exit_code = 2


class ConfigError(OumiError, ValueError):
    """A config that cannot be carried out; holds every problem that was found."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, subject: str = "config") -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        self.subject = subject
        super().__init__(problems if isinstance(problems, str) else listing(subject, self.problems))


class DataError(OumiError):
    """Rows that cannot be trained on, or a data set that cannot be read."""

    exit_code = 65


class OutputError(OumiError):
    """An output directory that cannot be created, or that another run holds."""

    exit_code = 73


class StorageError(OumiError):
    """A file that could not be written or read: disk full, device error, broken checkpoint."""

    exit_code = 74


class PreemptedError(OumiError):
    """The run was asked to stop; run the same command to go on."""

    exit_code = 75


class NotFiniteError(OumiError):
    """The loss or the gradient is not a finite number, or the run diverged."""

    exit_code = 76


class OtherRankError(OumiError):
    """Another process of the run stopped, and tells why itself."""


class RefusedError(OumiError):
    """Refused because it could run foreign code or leak a secret."""

    exit_code = 77


def listing(subject: str, problems: Sequence[Problem]) -> str:
    """Returns the problems as text, one a line below the subject."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return "\n".join([f"{subject}: {count}", *(f"  {problem}" for problem in problems)])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns the known name that is spelled most like `name`, or None if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `, did you mean 'x'?` for the nearest known name, or an empty string."""
    near = nearest(name, names)
    return f", did you mean '{near}'?" if near else ""
