# SPDX-License-Identifier: Apache-2.0
"""The documented import path of `oumi.core.data.datasets`."""

from oumi.core.data.datasets import *  # noqa: F403
