# SPDX-License-Identifier: Apache-2.0
"""Reads the images of rows: paths, URLs, bytes, base64 or Pillow images."""

from __future__ import annotations

import io
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue
from oumi.core.types.conversation import ContentItem, Type


def image_item(value: Any, kind: str = "image") -> ContentItem:
    """Returns an image as a part of a message.

    Args:
        value: A path, a URL, a data URL, bytes, a Pillow image, or an object with `bytes`, `path` or `url`.
        kind: Type of the part; the text of an `image_binary` is base64.

    Raises:
        UnusableValue: It is none of these, or cannot be decoded.
    """
    if isinstance(value, Mapping):
        # Bytes first: `datasets` keeps the original file name in `path`, where there is no file any more.
        content = next((value[key] for key in ("bytes", "path", "url") if value.get(key)), None)
        if content is None:
            keys = ", ".join(map(str, value)) or "nothing"
            raise UnusableValue(f"an image must have bytes, a path or a url, got {keys}")
        return image_item(content)
    if isinstance(value, bytes) and value:
        return ContentItem(type=Type.IMAGE_BINARY, binary=value)
    if isinstance(value, str) and value:
        return _image_of_text(value, kind)
    if hasattr(value, "save"):  # a Pillow image; Pillow is not imported for rows without images
        buffer = io.BytesIO()
        try:
            value.convert("RGB").save(buffer, format="PNG")  # lossless, so the pixels stay the same
        except (OSError, ValueError) as error:
            raise UnusableValue(f"an image that cannot be decoded: {error}") from None
        return ContentItem(type=Type.IMAGE_BINARY, binary=buffer.getvalue())
    raise UnusableValue(f"an image must be a path, a URL or bytes, got {type(value).__name__}")


def _image_of_text(value: str, kind: str) -> ContentItem:
    is_data_url = value.startswith("data:")
    if is_data_url or kind == "image_binary":
        try:
            # Encoders wrap base64 into lines, which strict decoding refuses.
            encoded = value.partition(",")[2] if is_data_url else value
            content = b64decode("".join(encoded.split()), validate=True)
        except (Base64Error, ValueError):
            raise UnusableValue("an image in base64 that cannot be decoded") from None
        if not content:
            raise UnusableValue("an image without bytes")
        return ContentItem(type=Type.IMAGE_BINARY, binary=content)
    location = value.removeprefix("file://")
    if not location:
        raise UnusableValue("an image without a path")
    is_url = value.startswith(("http://", "https://"))
    return ContentItem(type=Type.IMAGE_URL if is_url else Type.IMAGE_PATH, content=location)
