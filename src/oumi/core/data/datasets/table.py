# SPDX-License-Identifier: Apache-2.0
"""The data sets that ship, by name: the class of each, and the arguments that differ from its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """A row of the table."""

    part: str
    """`module:class`, imported only when it is used."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class; those of a config override them."""
    hub_name: str | None = None
    """Id on the Hub, if it differs from the name."""
    is_script: bool = False
    """The Hub has a loading script, which `datasets` no longer runs."""


_SFT, _VISION, _GRPO = "oumi.datasets.sft", "oumi.datasets.vision_language", "oumi.datasets.grpo"
_TURNS = f"{_SFT}.turns:TurnsDataset"
_EXCHANGE = f"{_SFT}.exchange:ExchangeDataset"
_PICTURE = f"{_VISION}.question:ImageQuestionDataset"
_CAPTION = f"{_VISION}.caption:CaptionDataset"
_CAULDRON = f"{_VISION}.cauldron:CauldronDataset"


def _text(column: str = "text", hub_name: str | None = None, is_script: bool = False) -> Named:
    """Returns a data set of documents in a column."""
    part = "oumi.core.data.datasets.texts:BasePretrainingDataset"
    return Named(part, {"dataset_text_field": column}, hub_name, is_script)


NAMES: dict[str, Named] = {
    # Chats
    "text_sft": Named(f"{_SFT}.text:TextSftDataset"),
    "text_sft_jsonl": Named(f"{_SFT}.text:TextSftDataset"),
    "HuggingFaceDataset": Named(f"{_SFT}.turns:HuggingFaceDataset"),
    "PromptResponseDataset": Named(f"{_SFT}.exchange:PromptResponseDataset"),
    "O1-OPEN/OpenO1-SFT": Named(_EXCHANGE),
    "yahma/alpaca-cleaned": Named(f"{_SFT}.alpaca:AlpacaDataset"),
    "tatsu-lab/alpaca": Named(f"{_SFT}.alpaca:AlpacaDataset"),
    "uiuc-convai/CoALM-IT": Named(f"{_SFT}.alpaca:AlpacaDataset"),
    "tatsu-lab/alpaca_eval": Named(f"{_SFT}.alpaca:AlpacaEvalDataset"),
    "CohereForAI/aya_dataset": Named(_EXCHANGE, {"prompt_column": "inputs", "response_column": "targets"}),
    "argilla/databricks-dolly-15k-curated-en": Named(f"{_SFT}.dolly:DollyDataset"),
    "argilla/magpie-ultra-v0.1": Named(_EXCHANGE, {"response_column": "response"}),
    "Magpie-Align/Llama-3-Magpie-Pro-1M-v0.1": Named(_TURNS, {"messages_column": "conversations"}),
    "Magpie-Align/Magpie-Pro-300K-Filtered": Named(_TURNS, {"messages_column": "conversations"}),
    "allenai/tulu-3-sft-mixture": Named(_TURNS),
    "HuggingFaceH4/ultrachat_200k": Named(_TURNS),
    "allenai/WildChat-1M": Named(_TURNS, {"messages_column": "conversation"}),
    "nvidia/ChatQA-Training-Data": Named(f"{_SFT}.chatqa:ChatqaDataset"),
    "nvidia/ChatQA-Training-Data/tatqa-arithmetic": Named(f"{_SFT}.chatqa:ChatqaTatqaDataset"),
    "nvidia/ChatQA-Training-Data/tatqa-others": Named(f"{_SFT}.chatqa:ChatqaTatqaDataset"),
    "nvidia/ChatRAG-Bench": Named(f"{_SFT}.chatqa:ChatRagBenchDataset"),
    "oumi/quickstart": Named(f"{_SFT}.quickstart:QuickstartDataset"),
    "oumi/quickstart_preferences": Named("oumi.datasets.preference.quickstart:QuickstartPreferencesDataset"),
    "debug_sft": Named("oumi.datasets.debug:DebugSftDataset"),
    # Documents
    "text": _text(),
    "oumi/quickstart_texts": Named("oumi.datasets.pretraining.quickstart:QuickstartTextsDataset"),
    "allenai/c4": _text(),
    "allenai/dolma": _text(is_script=True),
    "tiiuae/falcon-refinedweb": _text("content"),
    "HuggingFaceFW/fineweb-edu": _text(),
    "EleutherAI/pile": _text(is_script=True),
    "togethercomputer/RedPajama-Data-1T": _text(is_script=True),
    "togethercomputer/RedPajama-Data-V2": _text("raw_content", is_script=True),
    "gmongaras/SlimPajama-627B_Reupload": _text(),
    "cerebras/SlimPajama-627B": _text(hub_name="gmongaras/SlimPajama-627B_Reupload"),
    "bigcode/starcoderdata": _text("content"),
    "bigcode/the-stack": _text("content"),
    "roneneldan/TinyStories": _text(),
    "nampdn-ai/tiny-textbooks": _text("textbook"),
    "wikimedia/wikipedia": _text(),
    "Salesforce/wikitext": _text(),
    "PleIAs/YouTube-Commons": _text(),
    "debug_pretraining": Named("oumi.datasets.debug:DebugPretrainingDataset"),
    # Preferences
    "preference_pairs_jsonl": Named("oumi.datasets.preference.local:PreferencePairsDataset"),
    "text_dpo_jsonl": Named("oumi.datasets.preference.local:TextPairsDataset"),
    "mlabonne/orpo-dpo-mix-40k": Named("oumi.datasets.preference.orpo_dpo_mix:OrpoDpoMixDataset"),
    "debug_dpo": Named("oumi.datasets.debug:DebugDpoDataset"),
    "kto_jsonl": Named("oumi.datasets.preference.local:KtoRowsDataset"),
    "trl-lib/kto-mix-14k": Named("oumi.core.data.datasets.preferences:BaseExperimentalKtoDataset"),
    "debug_kto": Named("oumi.datasets.debug:DebugKtoDataset"),
    "vision_dpo_jsonl": Named(f"{_VISION}.local:VisionDpoJsonlinesDataset"),
    "openbmb/RLAIF-V-Dataset": Named(
        "oumi.core.data.datasets.preferences:VisionLanguageDpoDataset",
        {"prompt_key": "question", "images_key": "image"},
    ),
    # Chats with images
    "vl_sft": Named(f"{_VISION}.local:VLJsonlinesDataset"),
    "vl_sft_jsonl": Named(f"{_VISION}.local:VLJsonlinesDataset"),
    "vision_language_jsonl": Named(f"{_VISION}.local:VLJsonlinesDataset"),
    "hf_vision": Named(f"{_VISION}.question:HuggingFaceVisionDataset"),
    "HuggingFaceM4/the_cauldron": Named(_CAULDRON),
    "HuggingFaceM4/Docmatix": Named(_CAULDRON),
    "HuggingFaceH4/llava-instruct-mix-vsft": Named(f"{_VISION}.local:ImagedTurnsDataset"),
    "merve/vqav2-small": Named(f"{_VISION}.vqav2_small:Vqav2SmallDataset"),
    "lmms-lab/multimodal-open-r1-8k-verified": Named(
        _PICTURE, {"image_column": "image", "question_column": "problem", "answer_column": "solution"}
    ),
    "hiyouga/geometry3k": Named(f"{_VISION}.geometry3k:Geometry3kDataset"),
    "coco_captions": Named(_CAPTION, {"caption_column": "sentences"}, hub_name="HuggingFaceM4/COCO", is_script=True),
    "nlphuji/flickr30k": Named(_CAPTION, is_script=True),
    "allenai/pixmo-ask-model-anything": Named(
        _PICTURE, {"image_column": "image_url", "question_column": "question", "answer_column": "answer"}
    ),
    "allenai/pixmo-cap": Named(_CAPTION, {"image_column": "image_url"}),
    "allenai/pixmo-cap-qa": Named(f"{_VISION}.pixmo:PixmoCapQaDataset"),
    "mnist_sft": Named(f"{_VISION}.mnist:MnistSftDataset", hub_name="ylecun/mnist"),
    # Prompts
    "prompts_jsonl": Named(f"{_GRPO}.local:PromptsDataset"),
    "trl-lib/tldr": Named("oumi.core.data.datasets.prompts:BaseExperimentalGrpoDataset"),
    "openai/gsm8k": Named(f"{_GRPO}.gsm8k:Gsm8kGrpoDataset"),
    "d1shs0ap/countdown": Named(f"{_GRPO}.countdown:CountdownGrpoDataset"),
    "oumi-ai/oumi-letter-count": Named(f"{_GRPO}.letter_count:LetterCountGrpoDataset"),
    "oumi-ai/oumi-letter-count-clean": Named(f"{_GRPO}.letter_count:LetterCountGrpoDataset"),
    "oumi-ai/berrybench-v0.1.1": Named(f"{_GRPO}.berry_bench:BerryBenchGrpoDataset"),
    "rar-medicine": Named(f"{_GRPO}.rar:RarDataset", hub_name="anisha2102/RaR-Medicine"),
    "rar-science": Named(f"{_GRPO}.rar:RarDataset", hub_name="anisha2102/RaR-Science"),
    "oumi-rlvr-rubric": Named(f"{_GRPO}.local:RubricRowsDataset"),
    # Tensors, for tests. The name is misspelled upstream, and configs use it.
    "debug_classfication": Named("oumi.datasets.debug_classification:DebugClassificationDataset"),
}
