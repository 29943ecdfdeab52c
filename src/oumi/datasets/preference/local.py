# SPDX-License-Identifier: Apache-2.0
"""Preferences and judged completions in local files."""

from __future__ import annotations

from oumi.core.datasets import BaseDpoDataset, BaseExperimentalKtoDataset


class PreferencePairsDataset(BaseDpoDataset):
    """Rows with `prompt`, `chosen` and `rejected`, each of them text or turns."""

    is_local = True


class KtoRowsDataset(BaseExperimentalKtoDataset):
    """Rows with `prompt`, `completion` and `label`."""

    is_local = True
