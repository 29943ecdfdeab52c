# SPDX-License-Identifier: Apache-2.0
"""Chats with images as the features that a processor makes of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from oumi.core.data.datasets.elements import IGNORED, cut_pair
from oumi.core.errors import ConfigError, DataError
from oumi.core.types.conversation import ContentItem, Conversation, Message, Role, Type
from oumi.core.types.example import Preference


class ImageElementWriter:
    """Makes features of chats; none is cut, as that would cut images in two."""

    def __init__(self, processor: Any, assistant_only: bool, max_size: int | None = None) -> None:
        """Takes how features are made.

        Args:
            processor: With its chat template.
            assistant_only: Only the assistant's turns are trained.
            max_size: Images are shrunk until their longer edge has no more pixels.
        """
        if processor is None:
            raise ConfigError(
                "an element with images is made by a processor: pass processor=... or processor_name=..., or "
                "return_conversations=True"
            )
        self._processor = processor
        self._assistant_only = assistant_only
        self._max_size = max_size
        ids = (getattr(processor, name, None) for name in ("image_token_id", "image_ids"))
        self._image_tokens = {token for token_ids in ids for token in _as_list(token_ids)}

    def features(self, chat: Conversation, asks: bool, as_tensors: bool) -> dict[str, Any]:
        """Returns what the processor makes of a chat, with `labels`: -100 where an image stands.

        Token ids, mask and labels have one dimension [T]; images have those that the processor gives them.

        Args:
            chat: The chat.
            asks: End where the last answer begins.
            as_tensors: Return tensors, not lists and arrays.
        """
        turns = chat.messages[:-1] if asks and chat.messages[-1].role == Role.ASSISTANT else chat.messages
        features = dict(self._processed(turns, asks))
        ids = features["input_ids"][0]
        is_target = self._answers(turns, ids.tolist()) if self._assistant_only else [True] * len(ids)
        pairs = zip(ids.tolist(), is_target, strict=True)
        labels = [values if trained and values not in self._image_tokens else IGNORED for values, trained in pairs]
        features |= {"labels": ids.new_tensor(labels)[None]}
        for name in ("input_ids", "attention_mask", "labels"):
            features[name] = features[name][0] if as_tensors else features[name][0].tolist()
        return features if as_tensors else {name: _as_array(values) for name, values in features.items()}

    def pair(self, value: Preference, as_tensors: bool) -> dict[str, Any]:
        """Returns ids of what both answers follow and of each answer, and the images as the processor has them."""
        both = []
        for chat in (value.chosen, value.rejected):
            assert isinstance(chat, Conversation), "plain text has no images"
            features = self.features(chat, asks=False, as_tensors=as_tensors)
            labels = features.pop("labels")
            ids = features.pop("input_ids")
            both.append((list(map(int, ids)), [values != IGNORED for values in labels]))
        features.pop("attention_mask")
        lists: dict[str, Any] = dict(cut_pair(*both))
        if as_tensors:
            lists = {name: ids.new_tensor(values) for name, values in lists.items()}
        return {**lists, **features}

    def _processed(self, turns: Sequence[Message], asks: bool) -> Any:
        return self._processor.apply_chat_template(
            [self._turn(turn) for turn in turns],
            add_generation_prompt=asks,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def _turn(self, message: Message) -> dict[str, Any]:
        """Returns a message as processors read it."""
        calls = [call.model_dump() for call in message.tool_calls or ()]
        turn = {"role": str(message.role), "content": [self._part(item) for item in message.content_items]}
        return {**turn, "tool_calls": calls} if calls else turn

    def _part(self, item: ContentItem) -> dict[str, Any]:
        if item.is_text():
            return {"type": "text", "text": item.content}
        if item.binary is None and self._max_size is None:
            return {"type": "image", "url" if item.type == Type.IMAGE_URL else "path": item.content}
        from PIL import Image
        from transformers.image_utils import load_image

        image = Image.open(io.BytesIO(item.binary)) if item.binary else load_image(item.content)
        if self._max_size is not None:
            image.thumbnail((self._max_size, self._max_size))
        return {"type": "image", "image": image.convert("RGB")}

    def _answers(self, turns: Sequence[Message], ids: list[int]) -> list[bool]:
        """Returns which tokens the assistant says, up to the end mark of each of its turns."""
        is_target = [False] * len(ids)
        for i, turn in enumerate(turns):
            if turn.role != Role.ASSISTANT:
                continue
            prompt_ids = self._processed(turns[:i], asks=True)["input_ids"][0].tolist()
            upto = self._processed(turns[: i + 1], asks=False)["input_ids"][0].tolist()
            if upto[: len(prompt_ids)] != prompt_ids or ids[: len(upto)] != upto:
                raise DataError(f"turn {i}: the chat template gives no prompt that the finished chat begins with")
            end = len(upto)
            while end > len(prompt_ids) and self._processor.decode([ids[end - 1]]).isspace():
                end -= 1
            is_target[len(prompt_ids) : end] = [True] * (end - len(prompt_ids))
        return is_target


def processor_of(dataset: Any) -> Any:
    """Returns the processor that a data set was given, or the one that it names; None if neither."""
    if dataset.processor is not None or dataset.processor_name is None:
        return dataset.processor
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(
        dataset.processor_name,
        revision=dataset.model_revision,
        trust_remote_code=dataset.trust_remote_code,
        **dataset.processor_kwargs,
    )


def _as_list(ids: Any) -> list[int]:
    if ids is None:
        return []
    return list(ids) if isinstance(ids, (list, tuple, set)) else [ids]


def _as_array(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else value
