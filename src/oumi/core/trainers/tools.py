# SPDX-License-Identifier: Apache-2.0
"""What turns the rows of a run into batches: its tokenizer, and its processor if the model sees pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from oumi.core.batch import Batch, collate
from oumi.core.data.cache import key_of
from oumi.core.data.picture_batches import collate_with_pictures
from oumi.core.data.templates import chat_template_for
from oumi.core.data.vision import Pictures
from oumi.core.models.tokenizers import load_tokenizer
from oumi.core.plan.parts import ModelPlan
from oumi.core.types.example import Example


@dataclass(frozen=True)
class Tools:
    """A tokenizer with its chat template, and a processor."""

    tokenizer: Any
    processor: Any = None

    @cached_property
    def pictures(self) -> Pictures | None:
        """Returns what makes tokens and features of pictures, None for a model that sees none."""
        return None if self.processor is None else Pictures(self.processor)

    @cached_property
    def digest(self) -> str:
        """Returns a digest of what decides the tokens of a text and of a picture."""
        return key_of(
            {
                "vocabulary": self.tokenizer.backend_tokenizer.to_str(),
                "special": self.tokenizer.special_tokens_map,
                "processor": None if self.processor is None else self.processor.to_json_string(),
            }
        )

    def join(self, examples: Sequence[Example]) -> Batch:
        """Returns examples as a batch."""
        return collate(examples) if self.pictures is None else collate_with_pictures(examples, self.pictures)

    def save(self, directory: Path) -> None:
        """Writes them as Hugging Face files."""
        if self.processor is None:
            self.tokenizer.save_pretrained(directory)
        else:
            from oumi.core.models.processors import save_processor

            save_processor(self.processor, directory)


def load_tools(plan: ModelPlan) -> Tools:
    """Returns the tools of a plan.

    Raises:
        ConfigError: No such tokenizer, processor or chat template.
    """
    tokenizer = load_tokenizer(plan)
    processor = None
    if plan.sees_pictures:
        from oumi.core.models.processors import load_processor  # loads all that transformers knows of pictures

        processor = load_processor(plan, tokenizer)
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    tokenizer.chat_template = chat_template_for(tokenizer, plan.chat_template)
    if processor is not None:
        processor.chat_template = tokenizer.chat_template
    return Tools(tokenizer, processor)
