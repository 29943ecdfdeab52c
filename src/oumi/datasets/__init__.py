# SPDX-License-Identifier: Apache-2.0
"""The data sets that ship, available by name in `oumi.core.datasets.DATASETS`, and by class here."""

from importlib import import_module
from typing import Any

_CLASSES = {
    "AlpacaDataset": "sft.alpaca",
    "AlpacaEvalDataset": "sft.alpaca",
    "BerryBenchGrpoDataset": "grpo.berry_bench",
    "CaptionDataset": "vision_language.caption",
    "CauldronDataset": "vision_language.cauldron",
    "ChatRagBenchDataset": "sft.chatqa",
    "ChatqaDataset": "sft.chatqa",
    "ChatqaTatqaDataset": "sft.chatqa",
    "CountdownGrpoDataset": "grpo.countdown",
    "DebugClassificationDataset": "debug_classification",
    "DebugDpoDataset": "debug",
    "DebugKtoDataset": "debug",
    "DebugPretrainingDataset": "debug",
    "DebugSftDataset": "debug",
    "DollyDataset": "sft.dolly",
    "ExchangeDataset": "sft.exchange",
    "Geometry3kDataset": "vision_language.geometry3k",
    "Gsm8kGrpoDataset": "grpo.gsm8k",
    "HuggingFaceDataset": "sft.turns",
    "HuggingFaceVisionDataset": "vision_language.question",
    "KtoRowsDataset": "preference.local",
    "LetterCountGrpoDataset": "grpo.letter_count",
    "MnistSftDataset": "vision_language.mnist",
    "OrpoDpoMixDataset": "preference.orpo_dpo_mix",
    "ImageQuestionDataset": "vision_language.question",
    "ImagedTurnsDataset": "vision_language.local",
    "PixmoCapQaDataset": "vision_language.pixmo",
    "PreferencePairsDataset": "preference.local",
    "PromptResponseDataset": "sft.exchange",
    "PromptsDataset": "grpo.local",
    "QuickstartDataset": "sft.quickstart",
    "RarDataset": "grpo.rar",
    "RubricRowsDataset": "grpo.local",
    "TextSftDataset": "sft.text",
    "TextSftJsonLinesDataset": "sft.text",
    "TurnsDataset": "sft.turns",
    "VLJsonlinesDataset": "vision_language.local",
    "VisionDpoJsonlinesDataset": "vision_language.local",
    "Vqav2SmallDataset": "vision_language.vqav2_small",
}


def __getattr__(name: str) -> Any:
    # Classes are imported when they are used: some import torch.
    if name not in _CLASSES:
        raise AttributeError(f"module 'oumi.datasets' has no attribute {name!r}")
    return getattr(import_module(f"oumi.datasets.{_CLASSES[name]}"), name)
