# SPDX-License-Identifier: Apache-2.0
"""All rows of a data set as tokens, tokenised once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from oumi.core.data.ledger import Ledger
from oumi.core.data.targets import Cut, Rendered, Renderer
from oumi.core.types.example import BadRow, Example, Row

_BATCH_SIZE = 512


class TokenTable:
    """Rows end to end: token ids, which are trained, and where each row came from."""

    def __init__(self, examples: list[Example]) -> None:
        lengths = np.fromiter((len(one.tokens) for one in examples), dtype=np.int64, count=len(examples))
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._tokens = _joined([one.tokens for one in examples], np.int32)
        self._is_target = _joined([one.is_target for one in examples], np.bool_)
        self._sources = [one.source for one in examples]

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Example:
        part = slice(self._offsets[index], self._offsets[index + 1])
        return Example(self._tokens[part], self._is_target[part], self._sources[index])

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return int(self._tokens.max()) if len(self._tokens) else -1

    def fingerprint(self) -> str:
        """Returns a digest of all ids, targets and row boundaries."""
        digest = hashlib.sha256()
        for array in (self._offsets, self._tokens, np.packbits(self._is_target)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def tokenise(rows: Iterable[Row | BadRow], renderer: Renderer, ledger: Ledger) -> TokenTable:
    """Returns the rows as tokens, each accounted for in the ledger.

    Raises:
        DataError: More rows cannot be used than the ledger allows.
    """
    examples: list[Example] = []
    for made in _tokenised(rows, renderer):
        if isinstance(made, BadRow):
            ledger.reject(made)
            continue
        example = made.example
        examples.append(example)
        ledger.accept(len(example.tokens), int(example.is_target.sum()), made.cut_tokens, made.cut_targets)
    ledger.close()
    return TokenTable(examples)


def _tokenised(rows: Iterable[Row | BadRow], renderer: Renderer) -> Iterator[Cut | BadRow]:
    waiting = iter(rows)
    while batch := list(islice(waiting, _BATCH_SIZE)):
        rendered = [row if isinstance(row, BadRow) else renderer.render(row) for row in batch]
        cuts = renderer.tokenise([one for one in rendered if isinstance(one, Rendered)])
        for one in rendered:
            yield one if isinstance(one, BadRow) else next(cuts)


def _joined(arrays: list[npt.NDArray[np.generic]], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)
