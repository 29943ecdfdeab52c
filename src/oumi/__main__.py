# SPDX-License-Identifier: Apache-2.0
"""`python -m oumi`, the same as `oumi`."""

from oumi.cli.main import run

run()
