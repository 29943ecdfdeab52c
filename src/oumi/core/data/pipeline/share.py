# SPDX-License-Identifier: Apache-2.0
"""Tokenizes the rows of a stream by all ranks together: each its share, and all get all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import distributed

from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.errors import OtherRankError
from oumi.core.types.example import Encoded, RejectedRow, Row


class RankTokenizer:
    """A tokenizer of rows whose calls all ranks make together, in the same order, with the same rows."""

    def __init__(self, tokenizer: RowTokenizer, group: Any) -> None:
        """Sets the tokenizer, and the process group: one of its own, since a thread uses it beside the training."""
        self._tokenizer = tokenizer
        self._group = group
        self._rank, self._size = distributed.get_rank(group), distributed.get_world_size(group)

    def make(self, rows: Sequence[Row | RejectedRow]) -> list[Encoded | RejectedRow]:
        """Returns the tokens of each row; a rejected row stays as it is.

        Raises:
            OtherRankError: Another rank could not tokenize its share.
        """
        own: list[Encoded | RejectedRow] | None = None
        outcomes: list[Any] = [None] * self._size
        try:
            own = list(self._tokenizer.make(rows[self._rank :: self._size]))
        finally:
            # Whatever happened: the other ranks would wait for ever.
            distributed.all_gather_object(outcomes, own, group=self._group)
        if None in outcomes:
            raise OtherRankError(f"rank {outcomes.index(None)} could not tokenize its rows")
        return [outcomes[i % self._size][i // self._size] for i in range(len(rows))]
