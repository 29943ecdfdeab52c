# SPDX-License-Identifier: Apache-2.0
"""Elements of conversations with images: the output of a processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi.core.data.datasets.elements import IGNORED, cut_pair
from oumi.core.data.tokenize.images import BadImage, load_image
from oumi.core.errors import ConfigError, DataError
from oumi.core.types.conversation import ContentItem, Conversation, Message, Role
from oumi.core.types.example import Preference


class ImageElementWriter:
    """Processes conversations with images. They are not truncated, since that could split the tokens of an image."""

    def __init__(self, processor: Any, assistant_only: bool, max_size: int | None = None) -> None:
        """Sets a processor and its options.

        Args:
            processor: Processor with a chat template.
            assistant_only: Set labels only for the tokens of the assistant.
            max_size: Maximum length of the longer edge of an image in pixels; larger images are shrunk.

        Raises:
            ConfigError: There is no processor.
        """
        if processor is None:
            raise ConfigError(
                "an element with images is made by a processor: pass processor=... or processor_name=..., or "
                "return_conversations=True"
            )
        self._processor = processor
        self._assistant_only = assistant_only
        self._max_size = max_size
        # Processors name the ids of their image tokens differently: an id, a list of ids, or None.
        self._image_tokens: set[int] = set()
        for name in ("image_token_id", "image_ids"):
            ids = getattr(processor, name, None)
            self._image_tokens.update(ids if isinstance(ids, (list, tuple, set)) else [] if ids is None else [ids])

    def features(self, chat: Conversation, is_prompt: bool, as_tensors: bool) -> dict[str, Any]:
        """Returns the output of the processor, with `labels`: the ids, and -100 for image tokens.

        Token ids, mask and labels have the shape [T]; images have the shape that the processor gives them.

        Args:
            chat: The conversation.
            is_prompt: End where the last answer begins.
            as_tensors: Return tensors instead of lists and arrays.
        """
        turns = chat.messages[:-1] if is_prompt and chat.messages[-1].role == Role.ASSISTANT else chat.messages
        features = dict(self._processed(turns, is_prompt))
        ids = features["input_ids"][0]  # the processor returns a batch
        is_target = self._assistant_mask(turns, ids.tolist()) if self._assistant_only else [True] * len(ids)
        pairs = zip(ids.tolist(), is_target, strict=True)
        labels = [token if trained and token not in self._image_tokens else IGNORED for token, trained in pairs]
        # With a batch dimension, as the other features have.
        features |= {"labels": ids.new_tensor(labels)[None]}
        for name in ("input_ids", "attention_mask", "labels"):
            features[name] = features[name][0] if as_tensors else features[name][0].tolist()
        if as_tensors:
            return features
        return {name: values.numpy() if hasattr(values, "numpy") else values for name, values in features.items()}

    def pair(self, value: Preference, as_tensors: bool) -> dict[str, Any]:
        """Returns the ids of the prompt that both answers share and of each answer, and the processed images."""
        both = []
        for chat in (value.chosen, value.rejected):
            assert isinstance(chat, Conversation), "plain text has no images"
            features = self.features(chat, is_prompt=False, as_tensors=as_tensors)
            labels = features.pop("labels")
            ids = features.pop("input_ids")
            both.append((list(map(int, ids)), [label != IGNORED for label in labels]))
        # Both conversations have the same images, so those of the last one are returned.
        features.pop("attention_mask")  # of one whole text, so it fits none of the parts
        lists: dict[str, Any] = dict(cut_pair(*both))
        if as_tensors:
            lists = {name: ids.new_tensor(values) for name, values in lists.items()}
        return {**lists, **features}

    def _processed(self, turns: Sequence[Message], is_prompt: bool) -> Any:
        """Returns the output of the processor for turns, as tensors with a batch dimension of 1."""
        messages = []
        for turn in turns:
            message: dict[str, Any] = {
                "role": str(turn.role),
                "content": [self._part(item) for item in turn.content_items],
            }
            if turn.tool_calls:
                message["tool_calls"] = [call.model_dump() for call in turn.tool_calls]
            messages.append(message)
        return self._processor.apply_chat_template(
            messages, add_generation_prompt=is_prompt, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def _part(self, item: ContentItem) -> dict[str, Any]:
        """Returns a part of a message in the form that `apply_chat_template` of processors reads."""
        if item.is_text():
            return {"type": "text", "text": item.content}
        try:
            image = load_image(item)
        except BadImage as error:
            raise DataError(str(error)) from None
        if self._max_size is not None:
            # Shrinks in place and keeps the aspect ratio; smaller images stay as they are.
            image.thumbnail((self._max_size, self._max_size))
        return {"type": "image", "image": image}

    def _assistant_mask(self, turns: Sequence[Message], ids: list[int]) -> list[bool]:
        """Returns which tokens the assistant writes, up to the end token of each of its turns."""
        is_target = [False] * len(ids)
        # The tokens of a turn are those between the chat that ends before it and the chat that ends with it.
        for i, turn in enumerate(turns):
            if turn.role != Role.ASSISTANT:
                continue
            prompt_ids = self._processed(turns[:i], is_prompt=True)["input_ids"][0].tolist()
            chat_ids = self._processed(turns[: i + 1], is_prompt=False)["input_ids"][0].tolist()
            if chat_ids[: len(prompt_ids)] != prompt_ids or ids[: len(chat_ids)] != chat_ids:
                raise DataError(f"turn {i}: the chat template gives no prompt that the finished chat begins with")
            end = len(chat_ids)
            # Most templates write a line break after the end token, which the assistant does not write.
            while end > len(prompt_ids) and self._processor.decode([ids[end - 1]]).isspace():
                end -= 1
            is_target[len(prompt_ids) : end] = [True] * (end - len(prompt_ids))
        return is_target


def processor_of(dataset: Any) -> Any:
    """Returns the processor of a data set, loaded if it has only a name; None if it has neither."""
    if dataset.processor is not None or dataset.processor_name is None:
        return dataset.processor
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(
        dataset.processor_name,
        revision=dataset.model_revision,
        trust_remote_code=dataset.trust_remote_code,
        **dataset.processor_kwargs,
    )
