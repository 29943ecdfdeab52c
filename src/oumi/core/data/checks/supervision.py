# SPDX-License-Identifier: Apache-2.0
"""Looks at what rows really teach, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from oumi.core.data.pipeline.mixture import Table
from oumi.core.data.tokenize.loss_mask import TokenizeSpec
from oumi.core.errors import DataError
from oumi.core.types.example import Example

NUM_CHECKED = 64
"""Rows of each data set whose supervision is verified before the first step."""


def spread(table: Table, count: int = NUM_CHECKED) -> Iterator[Example]:
    """Yields rows spread over a table, `count` of them at most."""
    for i in np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int)).tolist():
        yield table[i]


def check_supervision(examples: Iterable[Example], tokenizer: Any, asked: TokenizeSpec) -> None:
    """Verifies rows, and draws the first that teaches the wrong thing.

    Args:
        examples: The rows.
        tokenizer: Tells which tokens are special.
        asked: What they were to teach.

    Raises:
        DataError: A row without a target, one that trains its prompt although answers were asked for, one
            whose answer does not end, or one that begins twice.
    """
    for one in (document for example in examples for document in example.documents()):
        if asked.train_on == "nothing" or (asked.train_on == "all" and len(one.tokens) == 1):  # the end of a text
            continue
        if wrong := _wrong(one, tokenizer, asked):
            raise DataError(f"{one.source}: {wrong}. Trained tokens stand in brackets:\n{draw(one, tokenizer)}")


def draw(example: Example, tokenizer: Any) -> str:
    """Returns a row as text, with the tokens that are trained in brackets."""
    edges = np.flatnonzero(np.diff(example.is_target.astype(np.int8))) + 1
    parts = np.split(np.arange(len(example.tokens)), edges)
    texts = [tokenizer.decode(example.tokens[part].tolist()) for part in parts]
    return "".join(f"[{text}]" if example.is_target[part[0]] else text for text, part in zip(texts, parts, strict=True))


def _wrong(example: Example, tokenizer: Any, asked: TokenizeSpec) -> str:
    tokens, is_target, train_on = example.tokens, example.is_target, asked.train_on
    may_begin_anywhere = asked.truncation in ("left", "split")
    if not is_target[1:].any():
        return "no token is trained"
    if train_on != "all" and is_target.all() and not may_begin_anywhere:
        return f"every token is trained, though `{train_on}` was asked for"
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and len(tokens) > 1 and (tokens[:2] == bos).all():
        return "it begins with two start tokens: the chat template writes one, the tokenizer another"
    was_cut = len(tokens) == asked.max_length
    ends = np.flatnonzero(is_target & ~np.append(is_target[1:], was_cut))
    if asked.tool_results is not None:  # which stand between parts of an answer
        ends = ends[-1:]
    if train_on != "all" and any(not _is_special(int(tokens[end]), tokenizer) for end in ends):
        return (
            "an answer ends without a special token, so the model would not learn to stop; name a model.chat_template"
        )
    return ""


def _is_special(token: int, tokenizer: Any) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or added is not None
