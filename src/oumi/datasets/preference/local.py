# SPDX-License-Identifier: Apache-2.0
"""Preferences and judged completions in local files."""

from __future__ import annotations

from oumi.core.datasets import BaseDpoDataset, BaseExperimentalKtoDataset


class PreferencePairsDataset(BaseDpoDataset):
    """Rows with `prompt`, `chosen` and `rejected`, each of them text or turns."""

    is_local = True


class TextPairsDataset(BaseDpoDataset):
    """Rows with `prompt`, `chosen` and `rejected` as rendered text, to which an end-of-text token alone is added.

    Without `prompt`, it is the text with which both answers begin.
    """

    is_local = True
    _shape = "text_preference"


class KtoRowsDataset(BaseExperimentalKtoDataset):
    """Rows with `prompt`, `completion` and `label`."""

    is_local = True
