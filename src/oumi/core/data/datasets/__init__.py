# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, and the classes that users subclass to bring their own."""

from oumi.core.data.datasets.any_schema import ShapedDataset
from oumi.core.data.datasets.base import VALUES, BaseIterableDataset, BaseMapDataset
from oumi.core.data.datasets.chats import BaseSftDataset, VisionLanguageSftDataset
from oumi.core.data.datasets.lookup import dataset_for, unread_arguments
from oumi.core.data.datasets.preferences import BaseDpoDataset, BaseExperimentalKtoDataset, VisionLanguageDpoDataset
from oumi.core.data.datasets.prompts import BaseExperimentalGrpoDataset, BaseRubricDataset, to_prompt
from oumi.core.data.datasets.table import NAMES, Named
from oumi.core.data.datasets.texts import BasePretrainingDataset
from oumi.core.registry import DATASETS, EXTRA_MODULE, import_extra_files

__all__ = [
    "DATASETS",
    "EXTRA_MODULE",
    "NAMES",
    "VALUES",
    "BaseDpoDataset",
    "BaseExperimentalGrpoDataset",
    "BaseExperimentalKtoDataset",
    "BaseIterableDataset",
    "BaseMapDataset",
    "BasePretrainingDataset",
    "BaseRubricDataset",
    "BaseSftDataset",
    "Named",
    "ShapedDataset",
    "VisionLanguageDpoDataset",
    "VisionLanguageSftDataset",
    "dataset_for",
    "import_extra_files",
    "to_prompt",
    "unread_arguments",
]
