# SPDX-License-Identifier: Apache-2.0
"""Prompts in local files."""

from __future__ import annotations

from oumi.core.datasets import BaseExperimentalGrpoDataset, BaseRubricDataset


class PromptsDataset(BaseExperimentalGrpoDataset):
    """Rows with `prompt`, text or turns; a reward reads the other columns."""

    is_local = True


class RubricRowsDataset(BaseRubricDataset):
    """Rows with `prompt` and `rubrics`."""

    is_local = True
