# SPDX-License-Identifier: Apache-2.0
"""Tokens and features of images, from the processor of a model."""

from __future__ import annotations

import hashlib
import http.client
import io
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import ENAMETOOLONG
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.records.fields import UnusableValue
from oumi.core.data.records.images import PILLOW_ERRORS, URL_PREFIXES, upright_rgb
from oumi.core.system.cache import cache_home
from oumi.core.system.filesystem import expanded
from oumi.core.types.conversation import ContentItem, Type

_MAX_BYTES = 64_000_000
"""Size of a downloaded image."""
_TIMEOUT_S = 20.0
_TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Outputs of a processor that describe tokens. They are left out, since our batches have their own."""


_PROCESSOR_ERRORS = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError,
)  # fmt: skip
"""What processors raise for an image that they cannot use, such as one with a side of one pixel."""

FileStates = dict[str, tuple[int, int] | None]
"""Size in bytes and time of the last change of files; None for what is missing, and for a URL that failed."""


class BadImage(Exception):  # noqa: N818  a row, not a run, fails
    """An image that cannot be used; the message is the reason."""


class ImageEncoder:
    """Computes tokens and features of images with the processor of a model."""

    def __init__(self, processor: Any) -> None:
        """Sets the processor, one of transformers."""
        self._processor = processor
        # Gemma 3's templates write a token that begins an image; others write the image token itself.
        self.mark: str = getattr(processor, "boi_token", None) or processor.image_token
        """Stands for an image in a rendered text."""
        self.mark_id: int = processor.tokenizer.convert_tokens_to_ids(self.mark)
        self.token_id: int = getattr(processor, "image_token_id", None) or self.mark_id
        """The token whose embeddings the model replaces by those of the image."""
        self._expansions: dict[tuple[int, int], npt.NDArray[np.int32]] = {}

    def expansion(self, image: Any) -> npt.NDArray[np.int32]:
        """Returns the tokens of an image; they depend only on its size. Raises BadImage if the processor refuses it."""
        if image.size not in self._expansions:
            self._expansions[image.size] = np.array(self.inputs([self.mark], [[image]])["input_ids"][0], np.int32)
        return self._expansions[image.size]

    def features(self, images: Sequence[Any]) -> dict[str, Any]:
        """Returns the inputs of the model besides tokens, by name: tensors for all images in order.

        Raises:
            BadImage: The processor refuses the images.
        """
        inputs = self.inputs([self.mark * len(images)], [list(images)])
        return {name: value for name, value in inputs.items() if name not in _TOKEN_INPUTS}

    def inputs(self, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> Any:
        """Returns the outputs of the processor for texts and the images that are marked in each.

        Raises:
            BadImage: The processor refuses the images.
        """
        try:
            return self._processor(
                text=list(texts),
                images=[list(of_text) for of_text in images],
                add_special_tokens=False,  # `expansion` would take a start token for a token of the image
                return_tensors="pt",
            )
        except _PROCESSOR_ERRORS as error:
            sizes = ", ".join("{} x {}".format(*image.size) for of_text in images for image in of_text)
            raise BadImage(f"the processor of the model refuses an image ({sizes} pixels): {error}") from error


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """An image, and the tokens of its document that its features replace."""

    first: int
    last: int
    """Index after the last token."""
    item: ContentItem


class RowImages:
    """The images of a row, whose tokens replace the marks in each of its documents."""

    def __init__(
        self, image_encoder: ImageEncoder, items: Sequence[ContentItem], data_file: Path, states: FileStates
    ) -> None:
        """Loads the images of a row.

        Args:
            image_encoder: Computes their tokens.
            items: The images, in order.
            data_file: The file of the row.
            states: Gets the state of each file that is looked for.

        Raises:
            BadImage: One of the images cannot be used.
        """
        self._mark = image_encoder.mark_id
        self._items = [locate_image(item, data_file, states) for item in items]
        self._expansions = [image_encoder.expansion(load_image(item)) for item in self._items]

    def expand(
        self, ids: npt.NDArray[np.int32], is_target: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], tuple[ImageSpan, ...]]:
        """Returns ids [T], targets [T] and image spans of a document whose image marks are expanded to tokens.

        Tokens of images are not trained.
        """
        id_parts: list[npt.NDArray[np.int32]] = []
        target_parts: list[npt.NDArray[np.bool_]] = []
        spans: list[ImageSpan] = []
        start = length = 0
        marks = np.flatnonzero(ids == self._mark).tolist()
        # Not strict: an earlier turn, trained as it was then, has the first of the chat's images only.
        for mark, item, expansion in zip(marks, self._items, self._expansions, strict=False):
            id_parts += [ids[start:mark], expansion]
            target_parts += [is_target[start:mark], np.zeros(len(expansion), dtype=np.bool_)]
            length += mark - start
            spans.append(ImageSpan(length, length + len(expansion), item))
            length += len(expansion)
            start = mark + 1
        return (
            np.concatenate([*id_parts, ids[start:]]),
            np.concatenate([*target_parts, is_target[start:]]),
            tuple(spans),
        )


def locate_image(item: ContentItem, data_file: Path, states: FileStates) -> ContentItem:
    """Returns an image whose path, if it has one, is absolute.

    Args:
        item: Its path may be relative to the working directory or to the file of the data.
        data_file: The file of the data.
        states: Gets the state of each file that is looked for.

    Raises:
        BadImage: There is no such file, or a URL cannot be downloaded.
    """
    if item.binary is not None or item.type == Type.IMAGE_BINARY:
        return item
    if item.type == Type.IMAGE_URL:
        try:
            _fetch(item.content or "")
        except BadImage:
            states[item.content or ""] = None
            raise
        return item
    path = expanded(item.content or "")
    for candidate in (path, data_file.parent / path):
        place = str(candidate.absolute())
        states[place] = state_of(place)  # before it is read, so that no later change is missed
        if states[place] is not None:
            return item.model_copy(update={"content": place})
    raise BadImage(f"no image at {item.content}, neither in the working directory nor beside {data_file}")


def state_of(place: str) -> tuple[int, int] | None:
    """Returns the state of a file as in FileStates."""
    path = Path(place)
    try:
        if not path.is_file():
            return None
    except OSError as error:
        if error.errno == ENAMETOOLONG:  # base64 where a path is expected
            return None
        raise
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def is_unchanged(place: str, state: Sequence[int] | None) -> bool:
    """Returns True if a file is in a state, as in FileStates. What failed to be downloaded is tried again."""
    return not place.startswith(URL_PREFIXES) and state_of(place) == (None if state is None else tuple(state))


def load_image(item: ContentItem) -> Any:
    """Returns an upright RGB image of Pillow; raises BadImage if it cannot be read or decoded."""
    if item.binary is not None:
        return _decode(item.binary, "an image")
    assert item.content is not None, "an image has bytes, a path or a URL"
    if item.type == Type.IMAGE_URL:
        return _decode(_fetch(item.content), item.content)
    try:
        content = Path(item.content).read_bytes()
    except OSError as error:
        raise BadImage(f"{item.content}: {error.strerror}") from None
    return _decode(content, item.content)


def _decode(content: bytes, name: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow only warns of an image that would fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return upright_rgb(Image.open(io.BytesIO(content)))
    except UnidentifiedImageError:
        raise BadImage(f"{name} is not an image in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except UnusableValue as error:
        raise BadImage(f"{name} {error}") from None
    except PILLOW_ERRORS as error:
        raise BadImage(f"{name} cannot be decoded: {error}") from None


def _fetch(url: str) -> bytes:
    """Returns the content of a URL, which is downloaded once and then read from the cache."""
    cached = cache_home() / "images" / hashlib.sha256(url.encode()).hexdigest()
    if cached.is_file():
        return cached.read_bytes()
    # Quotes white space and letters beyond ASCII, and leaves what is quoted already as it is.
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        with urllib.request.urlopen(quoted, timeout=_TIMEOUT_S) as response:
            content: bytes = response.read(_MAX_BYTES + 1)
            # urllib returns what it has when a connection breaks, without an error.
            missing = int(response.headers.get("Content-Length") or len(content)) - len(content)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadImage(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from None
    if len(content) > _MAX_BYTES:
        raise BadImage(f"{url}: more than {_MAX_BYTES:,} bytes")
    if missing:
        raise BadImage(f"{url}: breaks off, {missing:,} bytes are missing")
    _decode(content, url)  # an error page is not an image, and must not be cached
    with suppress(OSError):  # a cache that cannot be written only costs another download
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Written to another file and renamed, since other processes may read or download the same image now.
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as unfinished:
            unfinished.write(content)
        Path(unfinished.name).replace(cached)
    return content
