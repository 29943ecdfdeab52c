# SPDX-License-Identifier: Apache-2.0
"""What turns the rows of a run into batches: its tokenizer, and its processor if the model sees images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from oumi.core.batch import Batch, collate
from oumi.core.data.tokenize.chat_template import chat_template_for
from oumi.core.data.tokenize.images import BadImage, ImageEncoder, load_image
from oumi.core.data.tokenize.tokenizer import load_tokenizer
from oumi.core.errors import DataError
from oumi.core.plan.parts import ModelPlan
from oumi.core.system.cache import digest_of_values, token_cache
from oumi.core.types.example import Example


@dataclass(frozen=True)
class Preprocessor:
    """A tokenizer with its chat template, and a processor."""

    tokenizer: Any
    processor: Any = None

    @cached_property
    def image_encoder(self) -> ImageEncoder | None:
        """Returns what makes tokens and features of images, None for a model that sees none."""
        return None if self.processor is None else ImageEncoder(self.processor)

    @cached_property
    def digest(self) -> str:
        """Returns a digest of what decides the tokens of a text and of an image."""
        return digest_of_values(
            {
                "vocabulary": self.tokenizer.backend_tokenizer.to_str(),
                "special": self.tokenizer.special_tokens_map,
                "processor": None if self.processor is None else self.processor.to_json_string(),
            }
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns examples as a batch."""
        return collate(examples) if self.image_encoder is None else collate_with_images(examples, self.image_encoder)

    def save(self, directory: Path) -> None:
        """Writes them as Hugging Face files."""
        if self.processor is None:
            self.tokenizer.save_pretrained(directory)
        else:
            from oumi.core.data.tokenize.processor import save_processor

            save_processor(self.processor, directory)


def load_preprocessor(plan: ModelPlan) -> Preprocessor:
    """Returns the tools of a plan.

    Raises:
        ConfigError: No such tokenizer, processor or chat template.
    """
    tokenizer = load_tokenizer(plan)
    processor = None
    if plan.sees_images:
        from oumi.core.data.tokenize.processor import load_processor  # loads all that transformers knows of images

        processor = load_processor(plan, tokenizer)
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    tokenizer.chat_template = chat_template_for(tokenizer, plan.chat_template)
    if processor is not None:
        processor.chat_template = tokenizer.chat_template
    return Preprocessor(tokenizer, processor)


def collate_with_images(examples: Sequence[Example], image_encoder: ImageEncoder) -> Batch:
    """Returns examples end to end, with the features of their images.

    Raises:
        DataError: An image has changed since its row was tokenized, or is gone.
    """
    batch = collate(examples)
    counts = [len(one) for example in examples for one in (example.images or ((),) * len(example.starts))]
    if not any(counts):
        return batch
    images = []
    for example in examples:
        try:
            images += [load_image(item) for of_document in example.images for item in of_document]
        except BadImage as error:
            raise DataError(f"{example.source}: {error}") from None
    wanted = sum(int((image_encoder.expansion(one) == image_encoder.token_id).sum()) for one in images)
    if wanted != int((batch.tokens == image_encoder.token_id).sum()):
        names = ", ".join(str(one.source) for one in examples)
        raise DataError(
            f"an image of these rows has another size than when it was tokenized: {names}\n"
            f"Bring it back as it was, or delete {token_cache()}, where the tokens are kept"
        )
    return replace(batch, features=image_encoder.features(images), num_images=tuple(counts))
