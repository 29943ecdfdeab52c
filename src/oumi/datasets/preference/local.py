# SPDX-License-Identifier: Apache-2.0
"""Preferences and judged completions in local files."""

from __future__ import annotations

from oumi.core.datasets import BaseDpoDataset, BaseExperimentalKtoDataset


class PreferencePairsDataset(BaseDpoDataset):
    """Rows of `prompt`, `chosen` and `rejected`, each a text or turns."""

    is_local = True


class KtoRowsDataset(BaseExperimentalKtoDataset):
    """Rows of `prompt`, `completion` and `label`."""

    is_local = True
