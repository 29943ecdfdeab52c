# SPDX-License-Identifier: Apache-2.0
"""Where `oumi` and `python -m oumi` begin."""

from __future__ import annotations

import sys

from oumi.core import host

_COMMANDS_ABOUT_MEMORY = {"train", "plan", "quickstart"}


def main() -> None:
    """Runs the command line."""
    if _COMMANDS_ABOUT_MEMORY & set(sys.argv):
        host.tighten_heap()  # before anything else is imported, as it starts the process anew
    from oumi.cli.main import run

    run()


if __name__ == "__main__":
    main()
