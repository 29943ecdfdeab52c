# SPDX-License-Identifier: Apache-2.0
"""Data sets of preferences, and of completions that are judged good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from oumi.core.data.datasets.base import BaseMapDataset
from oumi.core.data.records.schemas import turns_of
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Judged, Preference, Row

if TYPE_CHECKING:
    from oumi.core.data.datasets.elements import ElementWriter
    from oumi.core.data.datasets.image_elements import ImageElementWriter


class BaseDpoDataset(BaseMapDataset):
    """A data set of preferences. Override `transform_preference`, unless the rows have a known shape."""

    holds = Preference
    of_elements = frozenset({"return_tensors"})
    _shape = "preference"
    _hook = "transform_preference"
    _expected = "a mapping with prompt, chosen and rejected"

    def __init__(self, *, tokenizer: Any = None, return_tensors: bool = False, **named: Any) -> None:
        """Sets the tokenizer of the elements, and whether their token ids are tensors."""
        super().__init__(**named)
        self.return_tensors = return_tensors
        self._tokenizer = tokenizer

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a preference."""
        preference = self.transform_preference(sample)
        # An override may return a Preference, which has no items.
        return {key: _plain(value) for key, value in preference.items()} if hasattr(preference, "items") else preference

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `chosen` and `rejected`, each of them text or turns."""
        return sample

    def element(self, row: Row) -> Any:
        """Returns a row as token ids of the prompt, the chosen and the rejected answer."""
        return self._writer.pair(self._checked(row), self.return_tensors)

    @cached_property
    def _writer(self) -> ElementWriter:
        from oumi.core.data.datasets.elements import ElementWriter

        return ElementWriter(self._tokenizer, assistant_only=True)


class VisionLanguageDpoDataset(BaseDpoDataset):
    """A data set of preferences with images."""

    of_elements = BaseDpoDataset.of_elements | {"processor_name", "processor_kwargs", "model_revision", "max_size"}

    def __init__(
        self,
        *,
        processor: Any = None,
        processor_name: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        model_revision: str | None = None,
        max_size: int | None = None,
        prompt_key: str = "prompt",
        chosen_key: str = "chosen",
        rejected_key: str = "rejected",
        images_key: str = "images",
        **named: Any,
    ) -> None:
        """Sets the processor of the elements, and the names of the columns.

        Args:
            processor: Processor of the elements. A run uses that of its model instead.
            processor_name: Name or path of the processor to load if `processor` is None.
            processor_kwargs: Arguments to load it with.
            model_revision: Revision to load.
            max_size: Maximum length of the longer edge of an image of an element, in pixels.
            prompt_key: Column of the prompt.
            chosen_key: Column of the chosen answer.
            rejected_key: Column of the rejected answer.
            images_key: Column of the images.
            named: Arguments of BaseDpoDataset.
        """
        super().__init__(**named)
        self.processor = processor
        self.processor_name = processor_name
        self.processor_kwargs = dict(processor_kwargs or {})
        self.model_revision = model_revision
        self.max_size = max_size
        self._keys = {"prompt": prompt_key, "chosen": chosen_key, "rejected": rejected_key, "images": images_key}

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row with its columns renamed to `prompt`, `chosen`, `rejected` and `images`."""
        # Rows without images are allowed, any other missing column is reported.
        named = {name: sample.get(key) if name == "images" else sample[key] for name, key in self._keys.items()}
        return {**{key: value for key, value in sample.items() if key not in self._keys.values()}, **named}

    def element(self, row: Row) -> Any:
        """Returns a row as token ids of the prompt and both answers, with the processed images."""
        value = self._checked(row).value
        # Both answers have the same prompt, and the images are in it.
        has_images = isinstance(value.chosen, Conversation) and value.chosen.contains_images()
        return self._image_writer.pair(value, self.return_tensors) if has_images else super().element(row)

    @cached_property
    def _image_writer(self) -> ImageElementWriter:
        from oumi.core.data.datasets.image_elements import ImageElementWriter, processor_of

        return ImageElementWriter(processor_of(self), assistant_only=True, max_size=self.max_size)


class BaseExperimentalKtoDataset(BaseMapDataset):
    """A data set of completions, each judged good or bad. Override `transform_kto`, or `transform`."""

    holds = Judged
    _shape = "kto"
    _hook = "transform_kto"
    _expected = "a mapping with prompt, completion and label"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as prompt, completion and label."""
        return self.transform_kto(sample)

    def transform_kto(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `completion` and `label`, or as turns and `label`.

        If one of the first two is turns, both become turns.
        """
        if "prompt" not in sample and ("messages" in sample or "conversations" in sample):
            return sample  # a whole chat, whose last turn is judged
        label_key = "kto_tag" if "label" not in sample and "kto_tag" in sample else "label"
        answer_key = "response" if "completion" not in sample and "response" in sample else "completion"
        prompt, completion, label = (_plain(sample[key]) for key in ("prompt", answer_key, label_key))
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            prompt = turns_of(prompt, "user", "prompt")
            completion = turns_of(completion, "assistant", "completion")
        return {**sample, "prompt": prompt, "completion": completion, "label": label}

    def element(self, row: Row) -> Any:
        """Returns a row as prompt, completion and label: texts, or turns if the row has turns."""
        from oumi.core.data.datasets.elements import plain

        return plain(self._checked(row).value)


def _plain(value: Any) -> Any:
    """Returns a numpy array or number as plain Python; pandas reads lists in Parquet files as arrays."""
    return value.tolist() if hasattr(value, "tolist") else value
