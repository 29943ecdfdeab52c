# SPDX-License-Identifier: Apache-2.0
"""Reads the images of rows: paths, URLs, bytes, base64 or Pillow images."""

from __future__ import annotations

import io
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any

from oumi.core.data.records.fields import UnusableValue
from oumi.core.types.conversation import ContentItem, Type

IMAGE_MARK = "<image>"
"""Stands for the next image of a row, in the text of a turn."""
URL_PREFIXES = ("http://", "https://")
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error,
)  # fmt: skip
"""What Pillow raises for broken files, for broken EXIF data as well."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Numbers of TIFF tags, and a value of the second."""


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
            upright_rgb(value).save(buffer, format="PNG")  # lossless, so the pixels stay the same
        except UnusableValue as error:
            raise UnusableValue(f"an image that {error}") from None
        return ContentItem(type=Type.IMAGE_BINARY, binary=buffer.getvalue())
    raise UnusableValue(f"an image must be a path, a URL or bytes, got {type(value).__name__}")


def upright_rgb(image: Any) -> Any:
    """Returns an image of Pillow as it looks: with 8 bits for each of red, green and blue, turned as its EXIF data say.

    Raises:
        UnusableValue: It cannot be decoded, or it does not say which of its values is white. The message is a
            predicate, such as "cannot be decoded".
    """
    from PIL import Image, ImageOps

    try:
        # Cameras store the sensor's pixels and a rotation, which processors would ignore.
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            upright = Image.fromarray(_gray(upright, image))
        return upright.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableValue(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except PILLOW_ERRORS as error:
        raise UnusableValue(f"cannot be decoded: {error}") from None


def _gray(upright: Any, image: Any) -> Any:
    """Returns the values [H, W] of a gray image of more than 8 bits, scaled to 8; Pillow would cut them off at 255."""
    import numpy as np

    values = np.asarray(upright).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # of TIFF alone
    if upright.mode.startswith("I;16"):
        white = 2 ** int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0]) - 1
    elif image.format in ("PNG", "PPM"):
        white = 65_535
    else:
        low, high = float(values.min()), float(values.max())
        # Written so that NaN is refused. Of floating-point images, many are between 0 and 1.
        if not (low >= 0 and high <= 255 and (upright.mode == "I" or high > 1)):
            raise UnusableValue(
                f"has gray values from {low:g} to {high:g}, of which none is known to be white: "
                "save the image with 8 or 16 bits"
            )
        white = 255
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    return (values * (255 / white)).round().astype(np.uint8)


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
    is_url = value.startswith(URL_PREFIXES)
    return ContentItem(type=Type.IMAGE_URL if is_url else Type.IMAGE_PATH, content=location)
