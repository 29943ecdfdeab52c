# SPDX-License-Identifier: Apache-2.0
"""Rendered rows as tokens, cut to what the model takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.images import BadImage, ImageEncoder, ImageSpan, RowImages
from oumi.core.data.tokenize.loss_mask import MARKS, Document, Rendered, Renderer, TokenizeSpec, control_tokens
from oumi.core.errors import ConfigError
from oumi.core.types.example import Example, RejectedRow, Row


@dataclass(frozen=True, slots=True)
class Tokens:
    """A document: ids [T], which of them are trained [T], and where its images stand."""

    ids: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    images: tuple[ImageSpan, ...] = ()

    def part(self, first: int, last: int | None) -> Tokens:
        """Returns the tokens from one place to another, less those of an image that would be torn apart."""
        last = len(self.ids) if last is None else min(last, len(self.ids))
        first = first + len(self.ids) if first < 0 else first
        for one in self.images:
            if one.first < first < one.last:
                first = one.last
            if one.first < last < one.last:
                last = one.first
        inside = [one for one in self.images if first <= one.first and one.last <= last]
        moved = tuple(ImageSpan(one.first - first, one.last - first, one.item) for one in inside)
        return Tokens(self.ids[first:last], self.is_target[first:last], moved)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a row came to: one example, or several where it was split."""

    examples: tuple[Example, ...]
    cut_tokens: int
    cut_targets: int


class Encoder:
    """Makes examples of rendered rows."""

    def __init__(
        self,
        tokenizer: Any,
        train_on: str,
        max_length: int | None,
        truncation: str | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        """Takes the tokenizer, and what becomes of rows that are too long.

        Args:
            tokenizer: Must be a fast one, which tells which characters a token covers.
            train_on: `all`, `nothing`, or what else was asked for.
            max_length: Tokens that the model takes; None sets no limit.
            truncation: `right`, `left`, `reject` or `split`; None splits texts, cuts prompts on the left, and others
                on the right.
            image_encoder: Makes tokens of images.
        """
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path}: only fast tokenizers tell which text a token covers")
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._control = control_tokens(tokenizer)
        self._ids = tokenizer.convert_tokens_to_ids
        self._newline = self._backend.encode("\n", add_special_tokens=False).ids
        self._trains_all, self._trains_nothing = train_on == "all", train_on == "nothing"
        self._max_length = max_length
        self._truncation = truncation
        self._image_encoder = image_encoder

    def encode(self, batch: Sequence[Rendered]) -> Iterator[Encoded | RejectedRow]:
        """Yields the rows as tokens, cut to the model's length."""
        made: dict[int, list[Tokens]] = {}
        for has_specials in (True, False):
            rows = [one for one in batch if one.has_specials == has_specials]
            tokens = self._tokens([document for one in rows for document in one.documents], has_specials)
            made |= {id(one): [next(tokens) for _ in one.documents] for one in rows}
        for one in batch:
            try:
                yield self._fitted(one, self._seen(one, made[id(one)]))
            except BadImage as error:
                yield RejectedRow(one.source, str(error))

    def _seen(self, row: Rendered, documents: list[Tokens]) -> list[Tokens]:
        """Returns the documents of a row with the tokens of each image in the place of its mark."""
        items = row.documents[0].images
        if self._image_encoder is None or not items:
            return documents
        placed = RowImages(self._image_encoder, items, Path(row.source.path))
        return [Tokens(*placed.expanded(one.ids, one.is_target)) for one in documents]

    def _tokens(self, documents: Sequence[Document], has_specials: bool) -> Iterator[Tokens]:
        # A chat template writes every special token itself, at inference too.
        encodings = self._backend.encode_batch([one.text for one in documents], add_special_tokens=not has_specials)
        for document, encoding in zip(documents, encodings, strict=True):
            if has_specials and MARKS[0] in document.text:
                yield self._guarded(document)
            else:
                tokens = np.array(encoding.ids, dtype=np.int32)
                yield Tokens(tokens, self._targets(document, encoding, len(tokens)))

    def _targets(self, document: Document, encoding: Any, length: int) -> npt.NDArray[np.bool_]:
        """Returns which tokens cover a character that is trained.

        A token across the border of prompt and answer is trained: the ids are those of the whole text, whose
        answer it begins. (A prompt of inference ends before it, so a template should end its prompts where
        tokens do: after a special token, a newline, or a word.)
        """
        if self._trains_all and len(document.spans) == 1:
            return np.ones(length, dtype=np.bool_)
        is_target = np.zeros(length, dtype=np.bool_)
        for first, last in document.spans:
            if first >= last:
                continue
            begin, end = encoding.char_to_token(first), encoding.char_to_token(last - 1)
            if begin is None or end is None:
                return covered(without_gaps(encoding.offsets), document.spans)
            while end + 1 < length and (chars := encoding.token_to_chars(end + 1)) and chars[0] < last:
                end += 1  # more bytes of the last character
            is_target[begin : end + 1] = True
        return is_target

    def _guarded(self, document: Document) -> Tokens:
        """Returns the tokens of a text in which marks tell control tokens from text that looks like them."""
        assert self._control is not None, "there is something to guard against"
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for piece, start, is_token in _pieces(document.text, self._control):
            if is_token:
                ids.append(self._ids(piece))
                offsets.append((start, start + len(piece)))
                continue
            plain = piece.replace(MARKS[0], "").replace(MARKS[1], "")
            place = np.flatnonzero([char not in MARKS for char in piece]) + start
            for token, (first, last) in self._as_text(plain):
                ids.append(token)
                offsets.append((int(place[first]), int(place[last - 1]) + 1) if last > first else (start, start))
        tokens = np.array(ids, dtype=np.int32)
        if self._trains_all and len(document.spans) == 1:
            return Tokens(tokens, np.ones(len(tokens), dtype=np.bool_))
        return Tokens(tokens, covered(np.array(offsets).reshape(-1, 2), document.spans))

    def _as_text(self, text: str) -> list[tuple[int, list[int]]]:
        """Returns the tokens of a text with their places, what looks like a control token spelled out.

        It is encoded after a newline, so that no tokenizer takes it for the beginning of a text.
        """
        self._backend.encode_special_tokens = True
        try:
            led = self._backend.encode("\n" + text, add_special_tokens=False)
            if led.ids[: len(self._newline)] != self._newline:
                alone = self._backend.encode(text, add_special_tokens=False)
                return list(zip(alone.ids, without_gaps(alone.offsets).tolist(), strict=True))
        finally:
            self._backend.encode_special_tokens = False
        skipped = len(self._newline)
        places = without_gaps(led.offsets)[skipped:] - 1
        return list(zip(led.ids[skipped:], places.clip(min=0).tolist(), strict=True))

    def _fitted(self, row: Rendered, documents: list[Tokens]) -> Encoded | RejectedRow:
        """Returns the row within the model's length, or why nothing can be learned of it."""
        limit, policy = self._max_length, self._truncation or self._usual_truncation(row)
        longest = max(len(one.ids) for one in documents)
        num_tokens = sum(len(one.ids) for one in documents)
        num_targets = sum(int(one.is_target.sum()) for one in documents)

        def rejected(reason: str) -> RejectedRow:
            return RejectedRow(row.source, reason, num_tokens=num_tokens, num_targets=num_targets)

        if not any(self._is_of_use(one) for one in documents):
            return rejected("no token is trained")
        if not self._trains_all and not row.may_split and any(one.is_target.all() for one in documents):
            return rejected("every token is trained: nothing stands before the answer")
        if limit is None or longest <= limit:
            return Encoded((_joined(documents, row),), 0, 0)
        if policy == "reject":
            return rejected(f"longer than model_max_length {limit}: {longest} tokens")
        if policy == "split":
            if any(one.images for one in documents):
                return rejected(f"longer than model_max_length {limit}, and rows with images are not split")
            parts = [one.part(at, at + limit) for one in documents for at in range(0, len(one.ids), limit)]
            examples = tuple(_joined([part], row) for part in parts if self._is_of_use(part))
        else:
            cut = [_cut(one, limit, policy) for one in documents]
            kept = [one for one in cut if self._is_of_use(one)]
            if row.is_pair and len(kept) < 2:
                return rejected(f"every trained token of an answer lies beyond model_max_length {limit}")
            if row.is_pair and np.array_equal(kept[0].ids, kept[1].ids):
                return rejected(f"the answers are the same within model_max_length {limit}")
            examples = (_joined(kept, row),) if kept else ()
        if not examples:
            return rejected(f"every trained token lies beyond model_max_length {limit}")
        left = sum(len(one.tokens) for one in examples)
        left_targets = sum(int(one.is_target.sum()) for one in examples)
        examples = (*examples[:-1], replace(examples[-1], num_cut=num_tokens - left))
        return Encoded(examples, num_tokens - left, num_targets - left_targets)

    def _usual_truncation(self, row: Rendered) -> str:
        if self._trains_nothing:
            return "left"  # a prompt ends with what is asked
        return "split" if row.may_split else "right"

    def _is_of_use(self, document: Tokens) -> bool:
        """Returns True if something is learned of a document; its first token is never predicted."""
        return self._trains_nothing or bool(document.is_target[1:].any())


class RowTokenizer:
    """Makes examples of rows: renders, then encodes."""

    def __init__(
        self, tokenizer: Any, template: Template, asked: TokenizeSpec, image_encoder: ImageEncoder | None = None
    ) -> None:
        """Takes the tokenizer and its chat template, what is asked of the rows, and what makes tokens of images."""
        mark = image_encoder.mark if image_encoder else None
        self.renderer = Renderer(tokenizer, template, asked.train_on, asked.tool_results, mark)
        self.encoder = Encoder(tokenizer, asked.train_on, asked.max_length, asked.truncation, image_encoder)

    def render(self, rows: Iterable[Row | RejectedRow]) -> list[Rendered | RejectedRow]:
        """Returns each row as text."""
        return [row if isinstance(row, RejectedRow) else self.renderer.render(row) for row in rows]

    def encode(self, rendered: Sequence[Rendered | RejectedRow]) -> Iterator[Encoded | RejectedRow]:
        """Yields what each rendered row comes to."""
        encoded = self.encoder.encode([one for one in rendered if isinstance(one, Rendered)])
        for one in rendered:
            yield one if isinstance(one, RejectedRow) else next(encoded)

    def make(self, rows: Iterable[Row | RejectedRow]) -> Iterator[Encoded | RejectedRow]:
        """Yields what each row comes to."""
        return self.encode(self.render(rows))


def without_gaps(offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Returns the characters that each token covers [T, 2], with the white space before it.

    Tokenizers like GPT-2's leave it out, so that a token of white space seems to cover nothing.
    """
    whole = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    whole[1:, 0] = np.minimum(whole[1:, 0], np.maximum.accumulate(whole[:, 1])[:-1])
    return whole


def covered(offsets: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Returns which tokens, by the characters that each covers [T, 2], reach into a span."""
    is_target = np.zeros(len(offsets), dtype=np.bool_)
    for first, last in spans:
        is_target |= (offsets[:, 0] < last) & (offsets[:, 1] > first)
    return is_target


def _pieces(text: str, control: re.Pattern[str]) -> Iterator[tuple[str, int, bool]]:
    """Yields the control tokens of a marked text, and what stands between them, each with its place."""
    marked_or_not = re.compile(f"{MARKS[0]}[^{MARKS[1]}]*{MARKS[1]}|({control.pattern})")
    at = 0
    for found in marked_or_not.finditer(text):
        if found[1] is None:
            continue
        if found.start() > at:
            yield text[at : found.start()], at, False
        yield found[0], found.start(), True
        at = found.end()
    if at < len(text):
        yield text[at:], at, False


def _cut(document: Tokens, limit: int, side: str) -> Tokens:
    """Returns a document without what is too much of it on one side."""
    if len(document.ids) <= limit:
        return document
    return document.part(0, limit) if side == "right" else document.part(-limit, None)


def _joined(documents: Sequence[Tokens], row: Rendered) -> Example:
    seen = tuple(tuple(placed.item for placed in one.images) for one in documents)
    images = seen if any(seen) else ()
    if len(documents) == 1:
        return Example(documents[0].ids, documents[0].is_target, row.source, images=images, columns=row.columns)
    starts = np.cumsum([0, *(len(one.ids) for one in documents[:-1])]).tolist()
    tokens = np.concatenate([one.ids for one in documents])
    is_target = np.concatenate([one.is_target for one in documents])
    return Example(tokens, is_target, row.source, tuple(starts), images=images, columns=row.columns)
