# SPDX-License-Identifier: Apache-2.0
"""The same public names as `oumi`, under a second package name."""

from oumi import __all__, __getattr__, __version__  # noqa: F401
