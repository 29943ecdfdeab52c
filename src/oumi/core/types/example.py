# SPDX-License-Identifier: Apache-2.0
"""Rows on their way to a batch, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from oumi.core.types.conversation import ContentItem, Conversation, Message

if TYPE_CHECKING:  # plans use these classes, and do not import numpy
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)  # slots save memory, since every row has one
class Source:
    """The location of a row, which every message about the row names."""

    dataset: str
    """Name of the data set, as in the config."""
    path: str
    """File, or `name[split]` of a Hub data set."""
    line: int
    """Line in the file (from 1), or index of the row (from 0) in a Parquet file or a split of the Hub."""
    id: str | None = None
    """Id of the row, from its column `conversation_id` or `id`."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """A record, as it was read or converted."""

    value: Any
    source: Source


def row_of(value: Any, source: Source) -> Row:
    """Returns a record as a Row, with its own id in the source."""
    if isinstance(value, Mapping):
        row_id = value.get("conversation_id", value.get("id"))
        if isinstance(row_id, str | int) and row_id != "":
            return Row(value, Source(source.dataset, source.path, source.line, str(row_id)))
    return Row(value, source)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A record that cannot be used, and the reason."""

    source: Source
    reason: str
    """The problem. Details of this row alone follow a colon, so that a report counts rows with the same problem."""
    excerpt: str = ""
    """The first characters of the record, with control characters escaped."""
    num_tokens: int = 0
    """Tokens of the record, if it was rejected after tokenization."""
    num_targets: int = 0
    """Trained tokens among them."""

    def __str__(self) -> str:
        reason = printable(self.reason)
        if len(reason) > _MAX_REASON:
            reason = reason[:_MAX_REASON] + "..."
        return f"{self.source}: {reason}" + (f": {self.excerpt}" if self.excerpt else "")


_MAX_REASON = 300
"""Characters of a reason in a message; errors of libraries and user code may be long."""


def printable(text: str) -> str:
    """Returns a text with all characters escaped that do not print, such as those that control a terminal."""
    if text.isprintable():  # almost always, and much faster than a look at each character
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of shape [T] of one or more documents, which of them are trained, and their sources."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    """True if the token itself is to be predicted from the tokens before it."""
    source: Source
    starts: tuple[int, ...] = (0,)
    """Index of the first token of each document. Documents do not attend to each other."""
    others: tuple[Source, ...] = ()
    """Sources of the documents after the first, if they differ from `source`."""
    num_cut: int = 0
    """Tokens of the row that were truncated."""
    images: tuple[tuple[ContentItem, ...], ...] = ()
    """Images of each document, in order; empty if no document has any."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further JSON values that a method needs, by name, such as the label of a judged completion."""

    @property
    def lengths(self) -> list[int]:
        """Returns the number of tokens of each document."""
        return [end - start for start, end in pairwise([*self.starts, len(self.tokens)])]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Returns the source of each document."""
        return (self.source, *self.others) if self.others else (self.source,) * len(self.starts)

    def documents(self) -> list[Example]:
        """Returns each document as a separate example."""
        if len(self.starts) == 1:
            return [self]  # with `columns` and `num_cut`, which belong to a whole row
        ends = (*self.starts[1:], len(self.tokens))
        parts = [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]
        images_of_documents = self.images or ((),) * len(parts)
        return [
            Example(self.tokens[part], self.is_target[part], source, images=(images,) if images else ())
            for part, source, images in zip(parts, self.sources, images_of_documents, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its completion, both as plain text."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document, which is trained on completely."""

    text: str
    has_end: bool = True
    """Add the end token after it."""
    has_specials: bool = True
    """Add the special tokens of the tokenizer, such as a start token."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A chosen and a rejected answer to the same prompt: conversations, or plain text."""

    chosen: Conversation | Completion
    rejected: Conversation | Completion


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation or a completion, judged good or bad (KTO, Ethayarajh et al. 2024)."""

    value: Conversation | Completion
    is_good: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and what a reward function may need to score the answer."""

    messages: tuple[Message, ...]
    columns: Mapping[str, Any]
    """The other columns of the row."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The examples of a row: one, or several if it was split."""

    examples: tuple[Example, ...]
    cut_tokens: int = 0
    """Tokens beyond the model's length, which are in no example."""
    cut_targets: int = 0
    """Number of them that would be trained."""
    is_split: bool = False
    """It became more documents than it has chats: its template rewrites earlier turns, or it was too long."""
    remarks: tuple[str, ...] = ()
    """What the user should know of the row, though it is trained."""
