# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can fix, and the format of their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """A single problem, in the user's terms."""

    key: str
    """The subject: a dotted config key, a path, or a row."""
    message: str
    """The actual value, the expected one, and the nearest valid name."""
    place: str = ""
    """The location: `file:line:column`, or the flag that set the value."""

    def __str__(self) -> str:
        return " ".join(part for part in (self.place, f"{self.key}:" if self.key else "", self.message) if part)


class OumiError(Exception):
    """A problem that the user can fix: the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 2


class ConfigError(OumiError, ValueError):
    """An invalid config, with all of its problems."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, subject: str = "config") -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        self.subject = subject
        super().__init__(problems if isinstance(problems, str) else listing(subject, self.problems))


class DataError(OumiError):
    """Rows that cannot be trained on, or a data set that cannot be read."""

    exit_code = 65  # this and most codes below are those of sysexits.h


class OutputError(OumiError):
    """An output directory that cannot be created, or that another run holds."""

    exit_code = 73


class StorageError(OumiError):
    """A file that could not be written or read: disk full, device error, broken checkpoint."""

    exit_code = 74


class ExportError(OumiError):
    """A model that was written and does not compute what it did in memory."""

    exit_code = 70


class PreemptedError(OumiError):
    """The run was stopped by a signal; the same command resumes it."""

    exit_code = 75  # EX_TEMPFAIL: schedulers take it as a reason to start the job again


class NotFiniteError(OumiError):
    """The loss or the gradient is not finite, or the run diverged."""

    exit_code = 76


class OtherRankError(OumiError):
    """Another process of the run failed; it reports the cause itself."""

    exit_code = 1

    def __init__(self, message: str, rank: int | None = None, exit_code: int = 1) -> None:
        """Initializes the error with its message, the rank that failed, and the exit code of that one, if known."""
        super().__init__(message)
        self.rank = rank
        self.exit_code = exit_code or 1


class RefusedError(OumiError):
    """Refused because it could run foreign code or leak a secret."""

    exit_code = 77


def listing(subject: str, problems: Sequence[Problem]) -> str:
    """Returns the problems as text, one per line below the subject."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return "\n".join([f"{subject}: {count}", *(f"  {problem}" for problem in problems)])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns the name that is spelled most like `name`, None if none is similar."""
    by_lower = {candidate.lower(): candidate for candidate in names}  # case is the most common mistake
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns `, did you mean 'x'?` for the nearest name, or an empty string."""
    match = nearest(name, names)
    return f", did you mean '{match}'?" if match else ""
