# SPDX-License-Identifier: Apache-2.0
"""An import path that Oumi documents."""

from oumi.builders import build_lr_scheduler  # noqa: F401
