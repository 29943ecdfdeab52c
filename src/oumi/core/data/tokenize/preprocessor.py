# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a run, its chat template, and its processor if the model takes images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from oumi.core.batch import Batch, collate
from oumi.core.data.tokenize.chat_template import chat_template_for
from oumi.core.data.tokenize.images import BadImage, ImageEncoder, load_image
from oumi.core.data.tokenize.tokenizer import load_tokenizer, restore_settings
from oumi.core.errors import DataError
from oumi.core.plan.parts import ModelPlan
from oumi.core.system.cache import digest_of_values
from oumi.core.types.example import Example


@dataclass(frozen=True)
class Preprocessor:
    """Turns the rows of a run into batches."""

    tokenizer: Any
    """Its chat template is the one of the plan."""
    processor: Any = None
    """None for a model without images."""

    @cached_property
    def image_encoder(self) -> ImageEncoder | None:
        """Returns the encoder of images, None for a model without images."""
        return None if self.processor is None else ImageEncoder(self.processor)

    @cached_property
    def digest(self) -> str:
        """Returns a digest of all that decides the tokens of a text or an image."""
        # The chat template is not part of it: the cache has an input for it, with the date that it writes.
        return digest_of_values(
            {
                "vocabulary": self.tokenizer.backend_tokenizer.to_str(),
                "special": self.tokenizer.special_tokens_map,
                "processor": None if self.processor is None else self.processor.to_json_string(),
            }
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns examples end to end as a batch, with the features of their images.

        Raises:
            DataError: An image was changed or removed after its row was tokenized.
        """
        batch = collate(examples)
        counts = [len(items) for example in examples for items in (example.images or ((),) * len(example.starts))]
        if self.image_encoder is None or not any(counts):
            return batch
        images = []
        for example in examples:
            try:
                images += [load_image(item) for items in example.images for item in items]
            except BadImage as error:
                raise DataError(f"{example.source}: {error}") from None
        names = ", ".join(str(example.source) for example in examples)
        token_id = self.image_encoder.token_id
        try:
            num_expected = sum(int((self.image_encoder.expansion(image) == token_id).sum()) for image in images)
            features = self.image_encoder.features(images)
        except BadImage as error:
            raise DataError(f"{names}: {error}") from None
        # The model needs as many image tokens as features. The tokens may be from the cache; the image is read now.
        if num_expected != int((batch.tokens == token_id).sum()):
            raise DataError(
                f"an image of these rows has changed its size since it was tokenized: {names}\n"
                "Restore it, or start the run again, which tokenizes these rows anew"
            )
        return replace(batch, features=features, num_images=tuple(counts))

    def save(self, directory: Path) -> None:
        """Writes the tokenizer and the processor as Hugging Face files."""
        if self.processor is None:
            self.tokenizer.save_pretrained(directory)
        else:
            from oumi.core.data.tokenize.processor import save_processor

            save_processor(self.processor, directory)
        restore_settings(self.tokenizer, directory)


def load_preprocessor(plan: ModelPlan) -> Preprocessor:
    """Returns the tokenizer and the processor of a plan.

    Raises:
        ConfigError: There is no such tokenizer, processor or chat template.
    """
    tokenizer = load_tokenizer(plan)
    processor = None
    if plan.sees_images:
        # Imported here: the module loads all of transformers' code for images.
        from oumi.core.data.tokenize.processor import load_processor

        processor = load_processor(plan, tokenizer)
        # Some models store the chat template with the processor alone.
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    tokenizer.chat_template = chat_template_for(tokenizer, plan.chat_template)
    # It is saved with the model, and inference should use the template of the training.
    if processor is not None:
        processor.chat_template = tokenizer.chat_template
    return Preprocessor(tokenizer, processor)
