# SPDX-License-Identifier: Apache-2.0
"""Verifies which tokens of the rows are trained, before the first step."""

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
    """Yields at most `count` rows at equal distances in a table."""
    for i in np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int)).tolist():
        yield table[i]


def check_supervision(examples: Iterable[Example], tokenizer: Any, spec: TokenizeSpec) -> None:
    """Verifies which tokens of the rows are trained, and draws the first row that is wrong.

    Args:
        examples: The rows.
        tokenizer: The tokenizer of the rows. An answer should end with one of its special tokens.
        spec: Which tokens the rows should train.

    Raises:
        DataError: A row has no target, trains its prompt though only answers should be trained, has an answer without
            an end token, or begins with two start tokens.
    """
    for document in (document for example in examples for document in example.documents()):
        # A text that is split may leave one token at its end, which nothing predicts.
        if spec.train_on == "nothing" or (spec.train_on == "all" and len(document.tokens) == 1):
            continue
        if problem := _problem_of(document, tokenizer, spec):
            raise DataError(
                f"{document.source}: {problem}. Trained tokens are in brackets:\n{draw(document, tokenizer)}"
            )


def draw(example: Example, tokenizer: Any) -> str:
    """Returns a row as text, with the tokens that are trained in brackets."""
    # Split where trained tokens begin or end, and decode each part as a whole: a character may have several tokens.
    edges = np.flatnonzero(np.diff(example.is_target.astype(np.int8))) + 1
    parts = np.split(np.arange(len(example.tokens)), edges)
    texts = [tokenizer.decode(example.tokens[part].tolist()) for part in parts]
    return "".join(f"[{text}]" if example.is_target[part[0]] else text for text, part in zip(texts, parts, strict=True))


def _problem_of(example: Example, tokenizer: Any, spec: TokenizeSpec) -> str:
    tokens, is_target, train_on = example.tokens, example.is_target, spec.train_on
    # With these, a row may begin in the middle of an answer.
    may_begin_anywhere = spec.truncation in ("left", "split")
    if not is_target[1:].any():
        return "no token is trained"
    if train_on != "all" and is_target.all() and not may_begin_anywhere:
        return f"every token is trained, but train_target is `{train_on}`"
    bos = tokenizer.bos_token_id
    # Models whose start and end are one token may well begin with both.
    if bos is not None and bos != tokenizer.eos_token_id and len(tokens) > 1 and (tokens[:2] == bos).all():
        return "it begins with two start tokens: the chat template writes one, the tokenizer another"
    # A row that was cut at the model's length, or at that of an answer, need not end its answer.
    was_cut = len(tokens) == spec.max_length or len(tokens) - is_target.argmax() == spec.answer_limits.completion
    ends = np.flatnonzero(is_target & ~np.append(is_target[1:], was_cut))
    # Results of tools interrupt the targets of an answer, so only the last end is sure to be that of an answer.
    if spec.tool_results is not None:
        ends = ends[-1:]
    # Some tokenizers do not mark the token that ends a turn as special, but it is an added token in any case.
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} if train_on != "all" else set()
    if train_on != "all" and not special.issuperset(tokens[ends].tolist()):
        return (
            "an answer ends without a special token, so the model would not learn to stop; name a model.chat_template"
        )
    return ""
