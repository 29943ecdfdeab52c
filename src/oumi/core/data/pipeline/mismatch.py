# SPDX-License-Identifier: Apache-2.0
"""Prompts with the answers of other rows, for methods that compare with what has nothing to do with a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from oumi.core.batch import Batch
from oumi.core.types.example import Example


class MismatchCollator:
    """Joins rows into a batch, and beside it the same prompts with the answers of other rows."""

    def __init__(self, collate: Callable[[Sequence[Example]], Batch], max_length: int | None) -> None:
        """Sets the function that joins examples, and the largest number of tokens of a document."""
        self._collate = collate
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Returns rows without other answers, as the only row of a step has none."""
        return self._collate(examples)

    def beside(self, examples: Sequence[Example], others: Sequence[Example]) -> Batch:
        """Returns rows as a batch, with the prompt of each and the answer of the row of the same place in `others`."""
        pairs = zip(examples, others, strict=True)
        mismatched = self._collate([mismatch(example, other, self._max_length) for example, other in pairs])
        return replace(self._collate(examples), mismatched=mismatched)


def rows_before(order: Sequence[int]) -> dict[int, int]:
    """Returns the row before each row of a step, and for the first one the last; empty if there is only one.

    So the answers of a step are the same ones in both kinds of rows, as in TRL, where a step is one micro-batch.
    """
    return {} if len(order) < 2 else {row: before for before, row in pairwise([order[-1], *order])}


def mismatch(example: Example, other: Example, max_length: int | None) -> Example:
    """Returns the prompt of an example with the answer of another one, cut to a length.

    The prompt ends where the first token is trained; what follows is the answer.
    """
    prompt, begin = int(example.is_target.argmax()), int(other.is_target.argmax())
    tokens = np.concatenate([example.tokens[:prompt], other.tokens[begin:]])[:max_length]
    is_target = np.concatenate([example.is_target[:prompt], other.is_target[begin:]])[:max_length]
    return Example(tokens, is_target, example.source, images=example.images)
