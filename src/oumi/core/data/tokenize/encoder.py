# SPDX-License-Identifier: Apache-2.0
"""Tokenizes rendered rows, and cuts them to the length of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.tokenize.chat_template import Template
from oumi.core.data.tokenize.images import BadImage, FileStates, ImageEncoder, ImageSpan, RowImages
from oumi.core.data.tokenize.loss_mask import MARKS, Document, Rendered, Renderer, TokenizeSpec, control_tokens
from oumi.core.errors import ConfigError
from oumi.core.types.answers import NO_LIMITS
from oumi.core.types.example import Encoded, Example, RejectedRow, Row

_LIMITED = "longer than max_prompt_length or max_completion_length, so it was cut"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A document: ids [T], which of them are trained [T], and the spans of its images."""

    ids: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    images: tuple[ImageSpan, ...] = ()

    def part(self, first: int, last: int) -> Tokens:
        """Returns the tokens of a slice, without those of an image that the slice would cut."""
        last = min(last, len(self.ids))
        # The model needs all tokens of an image, or none.
        for span in self.images:
            if span.first < first < span.last:
                first = span.last
            if span.first < last < span.last:
                last = span.first
        inside = [span for span in self.images if first <= span.first and span.last <= last]
        moved = tuple(ImageSpan(span.first - first, span.last - first, span.item) for span in inside)
        return Tokens(self.ids[first:last], self.is_target[first:last], moved)


class Encoder:
    """Tokenizes rendered rows."""

    def __init__(
        self,
        tokenizer: Any,
        spec: TokenizeSpec,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        """Sets the tokenizer, and what happens to rows that are too long.

        Args:
            tokenizer: A fast one: others do not report which characters a token covers.
            spec: What is trained, and how long a row may be. Without a truncation, texts are split, prompts are cut on
                the left, and others on the right.
            image_encoder: Tokenizes images; None if there are none.
        """
        if not tokenizer.is_fast:
            raise ConfigError(f"{tokenizer.name_or_path}: only fast tokenizers report which text a token covers")
        self._backend = tokenizer.backend_tokenizer
        # The file of a tokenizer may switch both on, but rows are cut in `_fit`, and not padded here.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._control = control_tokens(tokenizer)
        self._added_tokens = dict(tokenizer.added_tokens_decoder)
        self._ids = tokenizer.convert_tokens_to_ids
        self._eos, self._bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        # The text of a row has its end-of-text token. The post-processor of some tokenizers adds another. (Not probed
        # with an empty text: some tokenizers begin and end texts with the same token.)
        self._adds_eos = self._backend.encode("a", add_special_tokens=True).ids[-1:] == [self._eos]
        self._newline = self._backend.encode("\n", add_special_tokens=False).ids
        self._trains_all, self._trains_nothing = spec.train_on == "all", spec.train_on == "nothing"
        self._spec = spec
        self._image_encoder = image_encoder
        self.num_embeddings: int | None = None
        """If set, a row with a token of this id or a higher one is rejected."""
        self.image_files: FileStates = {}
        """State of each file that the last call of `encode` looked for."""

    def encode(self, batch: Sequence[Rendered]) -> Iterator[Encoded | RejectedRow]:
        """Yields the rows as tokens, cut to the model's length."""
        self.image_files = {}
        documents: dict[int, list[Tokens]] = {}
        # Two calls of the backend, since whether it adds special tokens holds for a whole call.
        for has_specials in (True, False):
            rows = [row for row in batch if row.has_specials == has_specials]
            tokens = self._tokens([document for row in rows for document in row.documents], has_specials)
            documents |= {id(row): [next(tokens) for _ in row.documents] for row in rows}
        for row in batch:
            row_documents, items = documents[id(row)], row.documents[0].images
            # Replace the mark of each image by its tokens, before the length of the row is measured.
            if self._image_encoder is not None and items:
                try:
                    images = RowImages(self._image_encoder, items, Path(row.source.path), self.image_files)
                except BadImage as error:
                    yield RejectedRow(row.source, str(error))
                    continue
                row_documents = [Tokens(*images.expand(tokens.ids, tokens.is_target)) for tokens in row_documents]
            remarks = dict.fromkeys(remark for document in row.documents for remark in document.remarks)
            fitted = self._fit(row, row_documents)
            if isinstance(fitted, Encoded) and (remarks or fitted.remarks):
                fitted = replace(fitted, remarks=(*remarks, *fitted.remarks))
            if self._spec.unpairs and isinstance(fitted, Encoded):
                fitted = replace(fitted, examples=tuple(_unpaired(fitted.examples)))
            yield fitted

    def _tokens(self, documents: Sequence[Document], has_specials: bool) -> Iterator[Tokens]:
        # A chat template writes every special token itself, at inference too.
        encodings = self._backend.encode_batch(
            [document.text for document in documents], add_special_tokens=not has_specials
        )
        for document, encoding in zip(documents, encodings, strict=True):
            # Marked text is encoded again, piece by piece; it is rare.
            if has_specials and MARKS[0] in document.text:
                yield self._guarded(document)
            else:
                tokens = np.array(encoding.ids, dtype=np.int32)
                yield self._once(Tokens(tokens, self._targets(document, encoding, len(tokens))), has_specials)

    def _once(self, tokens: Tokens, has_specials: bool) -> Tokens:
        """Returns a document without start and end tokens that the tokenizer has added to those of the text."""
        if has_specials:
            return tokens
        ids = tokens.ids
        first = int(len(ids) > 1 and ids[0] == ids[1] == self._bos)
        last = len(ids) - int(self._adds_eos and ids[-1] == self._eos)
        return tokens if last - first == len(ids) else tokens.part(first, last)

    def _targets(self, document: Document, encoding: Any, length: int) -> npt.NDArray[np.bool_]:
        """Returns which tokens cover a character that is trained.

        A token across the border of prompt and answer is trained: the ids are those of the whole text, in which it
        begins the answer. (At inference the prompt ends before it, so a template should end its prompts where tokens
        end: after a special token, a newline, or a word.)
        """
        if self._trains_all and len(document.spans) == 1:
            return np.ones(length, dtype=np.bool_)
        is_target = np.zeros(length, dtype=np.bool_)
        for first, last in document.spans:
            if first >= last:
                continue
            # Two searches per span, which is faster than to compare the offsets of all tokens.
            begin, end = encoding.char_to_token(first), encoding.char_to_token(last - 1)
            # A control token of the prompt may extend over the white space with which the answer begins.
            if begin is not None and self._is_added_before(encoding, begin, first):
                begin += 1
            # White space at an edge may belong to no token's offsets.
            if begin is None or end is None:
                return covered(without_gaps(encoding.offsets), document.spans)
            while end + 1 < length and (chars := encoding.token_to_chars(end + 1)) and chars[0] < last:
                end += 1  # byte-level tokenizers may split one character into several tokens
            is_target[begin : end + 1] = True
        return is_target

    def _is_added_before(self, encoding: Any, token: int, char: int) -> bool:
        return encoding.ids[token] in self._added_tokens and bool(encoding.token_to_chars(token)[0] < char)

    def _guarded(self, document: Document) -> Tokens:
        """Returns the tokens of a text in which marks distinguish control tokens from text that looks like them."""
        assert self._control is not None, "a text is marked only where the tokenizer has control tokens"
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        pieces = list(_pieces(document.text, self._control))
        added = [self._added_tokens.get(self._ids(piece)) if is_token else None for piece, _, is_token in pieces]
        for i, (piece, start, is_token) in enumerate(pieces):
            if is_token:
                ids.append(self._ids(piece))
                offsets.append((start, start + len(piece)))
                continue
            # Some control tokens take the white space beside them.
            if i and (before := added[i - 1]) is not None and before.rstrip:
                start += len(piece) - len(piece.lstrip())
                piece = piece.lstrip()
            if i + 1 < len(pieces) and (after := added[i + 1]) is not None and after.lstrip:
                piece = piece.rstrip()
            plain = piece.replace(MARKS[0], "").replace(MARKS[1], "")
            places = np.flatnonzero([char not in MARKS for char in piece]) + start  # of each character that is left
            for token, (first, last) in self._encode_as_text(plain):
                ids.append(token)
                offsets.append((int(places[first]), int(places[last - 1]) + 1) if last > first else (start, start))
        tokens = np.array(ids, dtype=np.int32)
        if self._trains_all and len(document.spans) == 1:
            return Tokens(tokens, np.ones(len(tokens), dtype=np.bool_))
        return Tokens(tokens, covered(np.array(offsets).reshape(-1, 2), document.spans))

    def _encode_as_text(self, text: str) -> list[tuple[int, list[int]]]:
        """Returns the tokens of a text and the characters of each; what looks like a control token is encoded as text.

        The text is encoded after a newline, since many tokenizers treat the beginning of a text differently.
        """
        # The backend is shared, and elsewhere control tokens must be recognized. So it is reset in any case.
        self._backend.encode_special_tokens = True
        try:
            encoding = self._backend.encode("\n" + text, add_special_tokens=False)
            if encoding.ids[: len(self._newline)] != self._newline:  # the newline was merged into a token of the text
                encoding = self._backend.encode(text, add_special_tokens=False)
                return list(zip(encoding.ids, without_gaps(encoding.offsets).tolist(), strict=True))
        finally:
            self._backend.encode_special_tokens = False
        skipped = len(self._newline)
        offsets = without_gaps(encoding.offsets)[skipped:] - 1
        return list(zip(encoding.ids[skipped:], offsets.clip(min=0).tolist(), strict=True))

    def _fit(self, row: Rendered, documents: list[Tokens]) -> Encoded | RejectedRow:
        """Returns a row cut to the model's length, or the reason why it cannot be trained."""
        # A prompt ends with its question, so it is cut at its beginning.
        default = "left" if self._trains_nothing else "split" if row.may_split else "right"
        limit, policy = self._spec.max_length, self._spec.truncation or default
        num_tokens = sum(len(document.ids) for document in documents)
        num_targets = sum(int(document.is_target.sum()) for document in documents)
        is_split = len(documents) > (2 if row.is_pair else 1)

        def rejected(reason: str) -> RejectedRow:
            return RejectedRow(row.source, reason, num_tokens=num_tokens, num_targets=num_targets)

        if self.num_embeddings is not None:
            highest = max(int(document.ids.max(initial=0)) for document in documents)
            if highest >= self.num_embeddings:
                return rejected(f"a token has no embedding: {highest}, the model has {self.num_embeddings} embeddings")
        if not any(self._is_of_use(document) for document in documents):
            return rejected("no token is trained")
        if not self._trains_all and not row.may_split and any(document.is_target.all() for document in documents):
            return rejected("every token is trained: there is no prompt before the answer")
        remarks = ()
        if self._spec.answer_limits != NO_LIMITS:
            whole, documents = documents, [self._limited(document) for document in documents]
            is_same = all(len(now.ids) == len(before.ids) for now, before in zip(documents, whole, strict=True))
            remarks = () if is_same else (_LIMITED,)
            if row.is_pair and np.array_equal(documents[0].ids, documents[1].ids):
                return rejected("the answers are the same within max_completion_length")
        if limit is None or max(len(document.ids) for document in documents) <= limit:
            examples: tuple[Example, ...] = (_joined(documents, row),)
        elif policy == "reject":
            return rejected(
                f"longer than model_max_length {limit}: {max(len(document.ids) for document in documents)} tokens"
            )
        else:
            cut = self._cut(row, documents, limit, policy)
            if isinstance(cut, str):
                return rejected(cut)
            examples = cut
        left = sum(len(example.tokens) for example in examples)
        left_targets = sum(int(example.is_target.sum()) for example in examples)
        if left == num_tokens:
            return Encoded(examples, is_split=is_split)
        # On one example only, so that the sum over a data set is right.
        examples = (*examples[:-1], replace(examples[-1], num_cut=num_tokens - left))
        is_split = is_split or len(examples) > 1
        return Encoded(examples, num_tokens - left, num_targets - left_targets, is_split, remarks)

    def _limited(self, document: Tokens) -> Tokens:
        """Returns a document with the end of its prompt and the beginning of its answer, as long as they may be."""
        first, last = self._spec.answer_limits.within(len(document.ids), int(document.is_target.argmax()))
        return document.part(first, last)

    def _cut(self, row: Rendered, documents: list[Tokens], limit: int, policy: str) -> tuple[Example, ...] | str:
        """Returns a row cut at the limit, into parts that are rows of their own or at one end; or why it cannot be."""
        if policy == "split":
            if any(document.images for document in documents):
                return f"longer than model_max_length {limit}, and rows with images are not split"
            parts = [
                document.part(start, start + limit)
                for document in documents
                for start in range(0, len(document.ids), limit)
            ]
            examples = tuple(_joined([part], row) for part in parts if self._is_of_use(part))
        else:
            starts = [max(len(document.ids) - limit, 0) if policy == "left" else 0 for document in documents]
            if row.is_pair and policy == "left":
                # The answers of a pair are compared after the same prompt, so both lose the same part of it.
                starts = [max(len(document.ids) for document in documents) - limit] * len(documents)
                if starts[0] >= min(int(document.is_target.argmax()) for document in documents):
                    return f"no prompt is left before an answer within model_max_length {limit}"
            cut = [document.part(start, start + limit) for document, start in zip(documents, starts, strict=True)]
            kept = [document for document in cut if self._is_of_use(document)]
            # The loss of a pair compares its answers, so both must be left, and must differ.
            if row.is_pair and len(kept) < 2:
                return f"every trained token of an answer lies beyond model_max_length {limit}"
            if row.is_pair and np.array_equal(kept[0].ids, kept[1].ids):
                return f"the answers are the same within model_max_length {limit}"
            examples = (_joined(kept, row),) if kept else ()
        return examples or f"every trained token lies beyond model_max_length {limit}"

    def _is_of_use(self, document: Tokens) -> bool:
        """Returns True if a document can be trained; its first token is never predicted."""
        # Prompts have no targets: a method such as GRPO trains on the answers that it samples.
        return self._trains_nothing or bool(document.is_target[1:].any())


class RowTokenizer:
    """Renders rows as text, then tokenizes them."""

    def __init__(
        self, tokenizer: Any, template: Template, spec: TokenizeSpec, image_encoder: ImageEncoder | None = None
    ) -> None:
        """Sets the tokenizer, its chat template, what is trained, and the encoder of images, if there are any."""
        mark = image_encoder.mark if image_encoder else None
        self.renderer = Renderer(tokenizer, template, spec.train_on, spec.tool_results, mark)
        self.encoder = Encoder(tokenizer, spec, image_encoder)

    def render(self, rows: Iterable[Row | RejectedRow]) -> list[Rendered | RejectedRow]:
        """Returns each row as text."""
        return [row if isinstance(row, RejectedRow) else self.renderer.render(row) for row in rows]

    def encode(self, rendered: Sequence[Rendered | RejectedRow]) -> Iterator[Encoded | RejectedRow]:
        """Yields the tokens of each rendered row; a rejected row stays as it is."""
        # One iterator over the rows that are left, merged with the rejected ones in order.
        encoded = self.encoder.encode([row for row in rendered if isinstance(row, Rendered)])
        for row in rendered:
            yield row if isinstance(row, RejectedRow) else next(encoded)

    def make(self, rows: Iterable[Row | RejectedRow]) -> Iterator[Encoded | RejectedRow]:
        """Yields the tokens of each row; a rejected row stays as it is."""
        return self.encode(self.render(rows))


def without_gaps(offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Returns the characters that each token covers [T, 2], with the white space before it.

    Tokenizers like GPT-2's trim it from the offsets, so that a token of white space seems to cover nothing.
    """
    chars = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    chars[1:, 0] = np.minimum(chars[1:, 0], np.maximum.accumulate(chars[:, 1])[:-1])
    return chars


def covered(offsets: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Returns which tokens [T] overlap a span, from the characters that each covers [T, 2]."""
    is_target = np.zeros(len(offsets), dtype=np.bool_)
    for first, last in spans:
        is_target |= (offsets[:, 0] < last) & (offsets[:, 1] > first)
    return is_target


def _pieces(text: str, control: re.Pattern[str]) -> Iterator[tuple[str, int, bool]]:
    """Yields the control tokens of a marked text and the text between them: piece, start, and whether it is a token."""
    # Alternatives are tried in order, so what is marked is consumed before it can match as a token.
    marked_or_token = re.compile(f"{MARKS[0]}[^{MARKS[1]}]*{MARKS[1]}|({control.pattern})")
    start = 0
    for match in marked_or_token.finditer(text):
        if match[1] is None:
            continue
        if match.start() > start:
            yield text[start : match.start()], start, False
        yield match[0], match.start(), True
        start = match.end()
    if start < len(text):
        yield text[start:], start, False


def _unpaired(pairs: Sequence[Example]) -> Iterator[Example]:
    """Yields the answers of pairs as judged ones: the chosen one is good, the rejected one bad."""
    for pair in pairs:
        chosen, rejected = pair.documents()
        yield replace(chosen, columns={"label": True}, num_cut=pair.num_cut)
        yield replace(rejected, columns={"label": False})


def _joined(documents: Sequence[Tokens], row: Rendered) -> Example:
    images_by_document = tuple(tuple(span.item for span in document.images) for document in documents)
    images = images_by_document if any(images_by_document) else ()
    if len(documents) == 1:  # the usual case, without a copy
        return Example(documents[0].ids, documents[0].is_target, row.source, images=images, columns=row.columns)
    starts = np.cumsum([0, *(len(document.ids) for document in documents[:-1])]).tolist()
    tokens = np.concatenate([document.ids for document in documents])
    is_target = np.concatenate([document.is_target for document in documents])
    return Example(tokens, is_target, row.source, tuple(starts), images=images, columns=row.columns)
