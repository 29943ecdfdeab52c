# SPDX-License-Identifier: Apache-2.0
"""Data sets of answers of which one is better, or that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from oumi.core.data.datasets.base import BaseMapDataset
from oumi.core.data.records.schemas import turns_of
from oumi.core.types.conversation import Conversation
from oumi.core.types.example import Row

if TYPE_CHECKING:
    from oumi.core.data.datasets.elements import ElementWriter
    from oumi.core.data.datasets.image_elements import ImageElementWriter


class BaseDpoDataset(BaseMapDataset):
    """Rows that become preferences. Override `transform_preference`, unless they have a known shape already."""

    holds = "preferences"
    of_elements = frozenset({"return_tensors"})
    _shape = "preference"
    _hook = "transform_preference"
    _expected = "a mapping with prompt, chosen and rejected"

    def __init__(self, *, tokenizer: Any = None, return_tensors: bool = False, **named: Any) -> None:
        """Takes what makes token ids of an element, and whether they are tensors."""
        super().__init__(**named)
        self.return_tensors = return_tensors
        self._tokenizer = tokenizer

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as a preference."""
        preference = self.transform_preference(sample)
        return {key: _plain(value) for key, value in preference.items()} if hasattr(preference, "items") else preference

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `chosen` and `rejected`, each a text or turns."""
        return sample

    def element(self, row: Row) -> Any:
        """Returns a row as token ids of the prompt, the better answer and the worse one."""
        return self._writer.pair(self._checked(row), self.return_tensors)

    @cached_property
    def _writer(self) -> ElementWriter:
        from oumi.core.data.datasets.elements import ElementWriter

        return ElementWriter(self._tokenizer, assistant_only=True)


class VisionLanguageDpoDataset(BaseDpoDataset):
    """Rows that become preferences with images."""

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
        """Takes how the columns are called, and what makes features of an element.

        Args:
            processor: Makes features of elements. A run takes that of its model, so it does not read these five.
            processor_name: Which one to load, where none is given.
            processor_kwargs: With which arguments.
            model_revision: In which revision.
            max_size: Images are shrunk until their longer edge has no more pixels.
            prompt_key: Column of the prompt.
            chosen_key: Column of the better answer.
            rejected_key: Column of the worse one.
            images_key: Column of the images.
            named: See BaseDpoDataset.
        """
        super().__init__(**named)
        self.processor = processor
        self.processor_name = processor_name
        self.processor_kwargs = dict(processor_kwargs or {})
        self.model_revision = model_revision
        self.max_size = max_size
        self._keys = {"prompt": prompt_key, "chosen": chosen_key, "rejected": rejected_key, "images": images_key}

    def transform_preference(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row with its columns as they are called everywhere."""
        named = {name: sample.get(key) if name == "images" else sample[key] for name, key in self._keys.items()}
        return {**{key: value for key, value in sample.items() if key not in self._keys.values()}, **named}

    def element(self, row: Row) -> Any:
        """Returns a row as token ids of the prompt and both answers, with the images as the processor has them."""
        value = self._checked(row).value
        has_images = isinstance(value.chosen, Conversation) and value.chosen.contains_images()
        return self._image_writer.pair(value, self.return_tensors) if has_images else super().element(row)

    @cached_property
    def _image_writer(self) -> ImageElementWriter:
        from oumi.core.data.datasets.image_elements import ImageElementWriter, processor_of

        return ImageElementWriter(processor_of(self), assistant_only=True, max_size=self.max_size)


class BaseExperimentalKtoDataset(BaseMapDataset):
    """Rows that become a completion and whether it is a good one. Override `transform_kto`, or `transform`."""

    holds = "judged completions"
    _shape = "kto"
    _hook = "transform_kto"
    _expected = "a mapping with prompt, completion and label"

    def transform(self, sample: Mapping[str, Any]) -> Any:
        """Returns a row as prompt, completion and label."""
        return self.transform_kto(sample)

    def transform_kto(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a row as `prompt`, `completion` and `label`; where one is a list of turns, both become one."""
        prompt, completion, label = (_plain(sample[key]) for key in ("prompt", "completion", "label"))
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            prompt = turns_of(prompt, "user", "prompt")
            completion = turns_of(completion, "assistant", "completion")
        return {**sample, "prompt": prompt, "completion": completion, "label": label}

    def element(self, row: Row) -> Any:
        """Returns a row as prompt, completion and label: texts, or turns where the row has turns."""
        from oumi.core.data.datasets.elements import plain

        return plain(self._checked(row).value)


def _plain(value: Any) -> Any:
    """Returns a list or a number of numpy, as pandas reads them of Parquet files, as one of Python."""
    return value.tolist() if hasattr(value, "tolist") else value
