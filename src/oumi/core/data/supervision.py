# SPDX-License-Identifier: Apache-2.0
"""Looks at what rows really teach, before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np

from oumi.core.data.mixture import Table
from oumi.core.errors import DataError
from oumi.core.types.example import Example


def check_supervision(
    table: Table,
    tokenizer: Any,
    num_checked: int,
    train_on: str,
    max_length: int | None,
    truncation: str | None = None,
) -> None:
    """Verifies rows spread over a table, and draws the first that teaches the wrong thing.

    Args:
        table: The rows.
        tokenizer: Tells which tokens are special.
        num_checked: How many rows are looked at.
        train_on: What was asked to be trained.
        max_length: A row of so many tokens may have been cut, and its answer with it.
        truncation: Where it was cut; `left` and `split` may leave an answer without its prompt.

    Raises:
        DataError: A row without a target, one that trains its prompt although answers were asked for, one
            whose answer does not end, or one that begins twice.
    """
    for i in np.unique(np.linspace(0, len(table) - 1, min(num_checked, len(table))).astype(int)).tolist():
        for one in table[i].documents():
            if wrong := _wrong(one, tokenizer, train_on, max_length, truncation in ("left", "split")):
                raise DataError(f"{one.source}: {wrong}. Trained tokens stand in brackets:\n{draw(one, tokenizer)}")


def draw(example: Example, tokenizer: Any) -> str:
    """Returns a row as text, with the tokens that are trained in brackets."""
    edges = np.flatnonzero(np.diff(example.is_target.astype(np.int8))) + 1
    parts = np.split(np.arange(len(example.tokens)), edges)
    texts = [tokenizer.decode(example.tokens[part].tolist()) for part in parts]
    return "".join(f"[{text}]" if example.is_target[part[0]] else text for text, part in zip(texts, parts, strict=True))


def _wrong(example: Example, tokenizer: Any, train_on: str, max_length: int | None, may_begin_anywhere: bool) -> str:
    tokens, is_target = example.tokens, example.is_target
    if train_on == "nothing":
        return ""
    if not is_target[1:].any():
        return "no token is trained"
    if train_on != "all" and is_target.all() and not may_begin_anywhere:
        return f"every token is trained, though `{train_on}` was asked for"
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and len(tokens) > 1 and (tokens[:2] == bos).all():
        return "it begins with two start tokens: the chat template writes one, the tokenizer another"
    was_cut = len(tokens) == max_length
    ends = np.flatnonzero(is_target & ~np.append(is_target[1:], was_cut))
    if train_on != "all" and any(not _is_special(int(tokens[end]), tokenizer) for end in ends):
        return (
            "an answer ends without a special token, so the model would not learn to stop; name a model.chat_template"
        )
    return ""


def _is_special(token: int, tokenizer: Any) -> bool:
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or added is not None
