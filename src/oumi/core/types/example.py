# SPDX-License-Identifier: Apache-2.0
"""A row on its way to a batch, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from oumi.core.types.conversation import ContentItem, Conversation, Message

if TYPE_CHECKING:  # a plan knows these classes, and is made without numpy
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row stands, so that every refusal can name it."""

    dataset: str
    """Name of the data set, as the config gives it."""
    path: str
    """File, or `name[split]` of a Hub data set."""
    line: int
    """Line in the file (from 1); of a Parquet file or a split of the Hub, the index of the row (from 0)."""
    id: str | None = None
    """What the row calls itself, in its column `conversation_id` or `id`."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it was read."""

    value: Any
    source: Source


def row_of(value: Any, source: Source) -> Row:
    """Returns a record with what it calls itself in its source."""
    if isinstance(value, Mapping):
        name = value.get("conversation_id", value.get("id"))
        if isinstance(name, str | int) and name != "":
            return Row(value, Source(source.dataset, source.path, source.line, str(name)))
    return Row(value, source)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A record that cannot be used, and why."""

    source: Source
    reason: str
    """What is wrong; what is wrong with this row alone stands after a colon."""
    excerpt: str = ""
    """The first characters of the record, control characters escaped."""
    num_tokens: int = 0
    """Of the record, where it was found out only as tokens."""
    num_targets: int = 0

    def __str__(self) -> str:
        reason = printable(self.reason)
        shown = reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "..."
        return f"{self.source}: {shown}" + (f": {self.excerpt}" if self.excerpt else "")


_MAX_REASON = 300


def printable(text: str) -> str:
    """Returns a text in which whatever does not print, or could steer a terminal, is written out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids `[T]` of one or more documents, which of them are trained, and where they came from."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    """True where the token itself is to be predicted (from the tokens before it)."""
    source: Source
    starts: tuple[int, ...] = (0,)
    """Where each document begins: none sees another."""
    others: tuple[Source, ...] = ()
    """Where the documents after the first came from, if not from `source`."""
    num_cut: int = 0
    """Tokens of its row that were cut off."""
    images: tuple[tuple[ContentItem, ...], ...] = ()
    """Those of each document, in order; empty if there are none at all."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that a method needs beside tokens, by name, such as the label of a judged completion."""

    @property
    def lengths(self) -> list[int]:
        """Returns the tokens of each document."""
        return [end - start for start, end in pairwise([*self.starts, len(self.tokens)])]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Returns where each document came from."""
        return (self.source, *self.others) if self.others else (self.source,) * len(self.starts)

    def documents(self) -> list[Example]:
        """Returns each document as an example of its own."""
        if len(self.starts) == 1:
            return [self]
        ends = (*self.starts[1:], len(self.tokens))
        parts = [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]
        images_of_documents = self.images or ((),) * len(parts)
        return [
            Example(self.tokens[part], self.is_target[part], source, images=(images,) if images else ())
            for part, source, images in zip(parts, self.sources, images_of_documents, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and what is to follow it, both as plain text."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document, all of which is learned."""

    text: str
    has_end: bool = True
    """The token that ends a text stands after it."""
    has_specials: bool = True
    """What the tokenizer puts around a text, such as a start token, stands around it."""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two ways to go on from the same beginning, of which one is better: chats, or plain text."""

    chosen: Conversation | Completion
    rejected: Conversation | Completion


@dataclass(frozen=True, slots=True)
class Judged:
    """A chat or a completion, and whether it is a good one (KTO, Ethayarajh et al. 2024)."""

    value: Conversation | Completion
    is_good: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and whatever a reward function may need to judge the answer."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any]
    """The other columns of the row."""
