# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, and the classes that users subclass to bring their own."""

from oumi.core.datasets.chats import BaseSftDataset, VisionLanguageSftDataset
from oumi.core.datasets.named import EXTRA_MODULE, dataset_for, import_extra_files, unread_arguments
from oumi.core.datasets.names import NAMES, Named
from oumi.core.datasets.preferences import BaseDpoDataset, BaseExperimentalKtoDataset, VisionLanguageDpoDataset
from oumi.core.datasets.prompts import BaseExperimentalGrpoDataset, BaseRubricDataset, to_prompt
from oumi.core.datasets.rows import VALUES, BaseIterableDataset, BaseMapDataset
from oumi.core.datasets.shaped import ShapedDataset
from oumi.core.datasets.texts import BasePretrainingDataset
from oumi.core.registry import DATASETS

TRAINABLE = ("chats", "texts")
"""What rows of supervised training may hold."""

__all__ = [
    "DATASETS",
    "EXTRA_MODULE",
    "NAMES",
    "TRAINABLE",
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
