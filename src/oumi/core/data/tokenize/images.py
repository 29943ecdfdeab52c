# SPDX-License-Identifier: Apache-2.0
"""Images of a row as tokens, and as the features that a model takes beside tokens."""

from __future__ import annotations

import hashlib
import http.client
import io
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.system.cache import cache_home
from oumi.core.types.conversation import ContentItem, Type

_MAX_BYTES = 64_000_000
_SECONDS = 20.0
"""That a server may take."""
_NOT_FEATURES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class BadImage(Exception):  # noqa: N818  it says what a row is
    """An image that cannot be used."""


class ImageEncoder:
    """What the processor of a model makes of images."""

    def __init__(self, processor: Any) -> None:
        """Takes a processor of transformers."""
        self._processor = processor
        tokenizer = processor.tokenizer
        self.mark: str = getattr(processor, "boi_token", None) or processor.image_token
        """Stands for an image in a rendered text."""
        self.mark_id: int = tokenizer.convert_tokens_to_ids(self.mark)
        self.token_id: int = getattr(processor, "image_token_id", None) or self.mark_id
        """The token in whose place the model puts what it sees."""
        self._expansions: dict[tuple[int, int], npt.NDArray[np.int32]] = {}

    def expansion(self, image: Any) -> npt.NDArray[np.int32]:
        """Returns the tokens that stand for an image; only its size decides them."""
        if image.size not in self._expansions:
            self._expansions[image.size] = np.array(self.inputs([self.mark], [[image]])["input_ids"][0], np.int32)
        return self._expansions[image.size]

    def features(self, images: Sequence[Any]) -> dict[str, Any]:
        """Returns what the model takes beside tokens, by its name: tensors for all the images in order."""
        made = self.inputs([self.mark * len(images)], [list(images)])
        return {name: value for name, value in made.items() if name not in _NOT_FEATURES}

    def inputs(self, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> Any:
        """Returns all that the processor makes of texts and the images that each of them marks."""
        return self._processor(
            text=list(texts), images=[list(one) for one in images], add_special_tokens=False, return_tensors="pt"
        )


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """An image, and which tokens of its document stand for it."""

    first: int
    last: int
    """The one after the last."""
    item: ContentItem


class RowImages:
    """The images of a row, to be put into each of its documents."""

    def __init__(self, image_encoder: ImageEncoder, items: Sequence[ContentItem], beside: Path) -> None:
        """Takes what makes tokens of images, those of the row, and its file; raises BadImage for one of no use."""
        self._mark = image_encoder.mark_id
        self._items = [locate_image(one, beside) for one in items]
        self._expansions = [image_encoder.expansion(load_image(one)) for one in self._items]

    def expanded(
        self, ids: npt.NDArray[np.int32], is_target: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], tuple[ImageSpan, ...]]:
        """Returns a document whose marks are the tokens of its images, which are not trained, and their places."""
        marks = np.flatnonzero(ids == self._mark).tolist()
        parts: list[tuple[Any, Any]] = []
        placed: list[ImageSpan] = []
        begin = length = 0
        for at, item, expansion in zip(marks, self._items, self._expansions, strict=False):
            parts += [(ids[begin:at], is_target[begin:at]), (expansion, np.zeros(len(expansion), dtype=np.bool_))]
            length += at - begin
            placed.append(ImageSpan(length, length + len(expansion), item))
            length += len(expansion)
            begin = at + 1
        parts.append((ids[begin:], is_target[begin:]))
        return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts]), tuple(placed)


def locate_image(item: ContentItem, beside: Path) -> ContentItem:
    """Returns an image whose path, if it has one, does not depend on where the process runs.

    Args:
        item: Its path may be relative, to where the process runs or to the data.
        beside: The file of the data.

    Raises:
        BadImage: There is no such file.
    """
    if item.type != Type.IMAGE_PATH or item.binary is not None:
        return item
    path = Path(item.content or "").expanduser()
    for one in (path, beside.parent / path):
        if one.is_file():
            return item.model_copy(update={"content": str(one.absolute())})
    raise BadImage(f"no image at {item.content}, neither here nor beside {beside}")


def load_image(item: ContentItem) -> Any:
    """Returns an image as an RGB image of Pillow, upright; raises BadImage if it cannot be had or decoded."""
    return decoded(*_bytes_of(item))


def decoded(content: bytes, name: str) -> Any:
    """Returns the bytes of an image as an RGB image of Pillow, upright; raises BadImage if they are none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    except UnidentifiedImageError:
        raise BadImage(f"{name} is no image in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{name} cannot be decoded: {error}") from None


def _bytes_of(item: ContentItem) -> tuple[bytes, str]:
    if item.binary is not None:
        return item.binary, "an image"
    assert item.content is not None, "it has bytes, a path or a URL"
    if item.type == Type.IMAGE_URL:
        return _fetched(item.content), item.content
    try:
        return Path(item.content).read_bytes(), item.content
    except OSError as error:
        raise BadImage(f"{item.content}: {error.strerror}") from None


def _fetched(url: str) -> bytes:
    """Returns what stands at a URL; it is fetched once, and kept."""
    kept = cache_home() / "images" / hashlib.sha256(url.encode()).hexdigest()
    if kept.is_file():
        return kept.read_bytes()
    asked = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:
            content: bytes = answer.read(_MAX_BYTES + 1)
            missing = int(answer.headers.get("Content-Length") or len(content)) - len(content)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadImage(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from None
    if len(content) > _MAX_BYTES:
        raise BadImage(f"{url}: more than {_MAX_BYTES:,} bytes")
    if missing:
        raise BadImage(f"{url}: breaks off, {missing:,} bytes are missing")
    decoded(content, url)  # what is no image is not kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as unfinished:
        unfinished.write(content)
    Path(unfinished.name).replace(kept)
    return content
