# SPDX-License-Identifier: Apache-2.0
"""An image as rows hold it: a path, a URL, bytes or base64."""

from __future__ import annotations

import io
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue
from oumi.core.types.conversation import ContentItem, Type


def image_item(value: Any, kind: str = "image") -> ContentItem:
    """Returns an image: text is a path, a URL or a data URL; with `kind` image_binary it is base64.

    An object names it by `bytes`, `path` or `url`, as data sets of the Hub do; anything with `save` is an image
    of Pillow.
    """
    if isinstance(value, Mapping):
        content_of_object = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), None)
        if content_of_object is None:
            raise UnusableValue(
                f"an image must have bytes, a path or a url, got {', '.join(map(str, value)) or 'nothing'}"
            )
        return image_item(content_of_object)
    if isinstance(value, bytes) and value:
        return ContentItem(type=Type.IMAGE_BINARY, binary=value)
    if isinstance(value, str) and value:
        return _of_text(value, kind)
    if hasattr(value, "save"):
        buffer = io.BytesIO()
        try:
            value.convert("RGB").save(buffer, format="PNG")
        except (OSError, ValueError) as error:
            raise UnusableValue(f"an image that cannot be decoded: {error}") from None
        return ContentItem(type=Type.IMAGE_BINARY, binary=buffer.getvalue())
    raise UnusableValue(f"an image must be a path, a URL or bytes, got {type(value).__name__}")


def _of_text(value: str, kind: str) -> ContentItem:
    is_data_url = value.startswith("data:")
    if is_data_url or kind == "image_binary":
        try:
            encoded = value.partition(",")[2] if is_data_url else value
            content = b64decode("".join(encoded.split()), validate=True)
        except (Base64Error, ValueError):
            raise UnusableValue("an image in base64 that cannot be decoded") from None
        if not content:
            raise UnusableValue("an image without bytes")
        return ContentItem(type=Type.IMAGE_BINARY, binary=content)
    place = value.removeprefix("file://")
    if not place:
        raise UnusableValue("an image without a path")
    return ContentItem(
        type=Type.IMAGE_URL if value.startswith(("http://", "https://")) else Type.IMAGE_PATH, content=place
    )
