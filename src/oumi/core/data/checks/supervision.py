# SPDX-License-Identifier: Apache-2.0
"""Checks which tokens of the rows are trained, before the first step."""

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
        tokenizer: Its special tokens end an answer.
        spec: Which tokens the rows should train.

    Raises:
        DataError: A row has no target, trains its prompt though answers alone should be trained, does not end an
            answer, or begins twice.
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
    edges = np.flatnonzero(np.diff(example.is_target.astype(np.int8))) + 1
    parts = np.split(np.arange(len(example.tokens)), edges)
    texts = [tokenizer.decode(example.tokens[part].tolist()) for part in parts]
    return "".join(f"[{text}]" if example.is_target[part[0]] else text for text, part in zip(texts, parts, strict=True))


def _problem_of(example: Example, tokenizer: Any, spec: TokenizeSpec) -> str:
    tokens, is_target, train_on = example.tokens, example.is_target, spec.train_on
    # The prompt may have been cut off.
    may_begin_anywhere = spec.truncation in ("left", "split")
    if not is_target[1:].any():
        return "no token is trained"
    if train_on != "all" and is_target.all() and not may_begin_anywhere:
        return f"every token is trained, but train_target is `{train_on}`"
    bos = tokenizer.bos_token_id
    # Models whose start and end are one token may well begin with both.
    if bos is not None and bos != tokenizer.eos_token_id and len(tokens) > 1 and (tokens[:2] == bos).all():
        return "it begins with two start tokens: the chat template writes one, the tokenizer another"
    # A row that was cut at the model's length need not end its answer.
    was_cut = len(tokens) == spec.max_length
    ends = np.flatnonzero(is_target & ~np.append(is_target[1:], was_cut))
    if spec.tool_results is not None:  # they stand between parts of an answer
        ends = ends[-1:]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} if train_on != "all" else set()
    if train_on != "all" and not special.issuperset(tokens[ends].tolist()):
        return (
            "an answer ends without a special token, so the model would not learn to stop; name a model.chat_template"
        )
    return ""
