# SPDX-License-Identifier: Apache-2.0
"""Rows that are read, tokenized and trained on the way; where a stream stands is told by a few numbers.

A stream yields examples until its round is over, then begins another. Nothing is kept: to go on from a place, it
reads again at most the block of rows in which it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.pipeline.concatenate import Concatenation, joined
from oumi.core.data.pipeline.mixture import permute
from oumi.core.data.sources.reader import Place, RowReader
from oumi.core.data.tokenize.encoder import Encoded, RowTokenizer
from oumi.core.errors import DataError
from oumi.core.types.example import Example, RejectedRow, Row

State = dict[str, Any]
"""Where a stream stands, as JSON values."""
_ROWS_AT_ONCE = 64
"""Rows that are tokenized together."""
_MOST_BLOCKS = 1 << 40
"""Of a round, so that each block of each round is shuffled by a number of its own."""


class Stream(Protocol):
    """Examples in order, round after round."""

    def next(self) -> Example | None:
        """Returns the next example, None at the end of a round."""
        ...

    def restart(self) -> None:
        """Begins the next round."""
        ...

    def state(self) -> State:
        """Returns where the stream stands."""
        ...

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        ...


class DatasetRows(Protocol):
    """Where the rows of a stream come from: a data set."""

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that goes on at a place."""
        ...

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a row as what it stands for."""
        ...


@dataclass(frozen=True)
class Shuffle:
    """How a stream is shuffled: among so many rows at a time."""

    seed: int
    buffer_size: int


@dataclass
class _Block:
    """Consecutive rows, in the order in which they are trained."""

    place: Place
    """Of the first of them."""
    number: int
    rows: list[Row | RejectedRow]
    made: dict[int, Encoded | RejectedRow] = field(default_factory=dict)
    """What those that were tokenized came to."""


class ExampleStream:
    """The examples of one data set. Rows are shuffled block by block, so the order is found from any place."""

    def __init__(self, rows: DatasetRows, row_tokenizer: RowTokenizer, ledger: Ledger, shuffle: Shuffle | None) -> None:
        """Takes the rows, what makes examples of them, their account, and how they are shuffled, if at all."""
        self._source = rows
        self._tokeniser = row_tokenizer
        self._ledger = ledger
        self._shuffle = shuffle
        self._round = 0
        self._begin(None, 0)

    def next(self) -> Example | None:
        """Returns the next example, None at the end of a round.

        Raises:
            DataError: More rows cannot be used than the ledger allows.
        """
        while self._block.rows:
            if self._row == len(self._block.rows):
                self._load(self._block.number + 1)
                continue
            made = self._tokenised()
            if not self._taken and self._round == 0:  # later rounds hold the same rows
                self._count(made)
            if isinstance(made, Encoded) and self._taken < len(made.examples):
                self._taken += 1
                return made.examples[self._taken - 1]
            self._row, self._taken = self._row + 1, 0
        return None

    def drop(self, pieces: Sequence[Example]) -> None:
        """Notes what is left of the last documents of a round, and not trained."""
        if self._round == 0:
            self._ledger.counts.cut(len(pieces), sum(len(one.tokens) for one in pieces))

    def restart(self) -> None:
        """Begins the next round: the rows from the first on, in another order if they are shuffled."""
        self._round += 1
        self._begin(None, 0)

    def state(self) -> State:
        """Returns the round, the place of the block, and how far in it; and the account until here."""
        return {
            "round": self._round,
            "place": self._block.place,
            "block": self._block.number,
            "row": self._row,
            "taken": self._taken,
            "counts": self._ledger.counts.to_state(),
        }

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken: reads the rows of one block again."""
        self._round = state["round"]
        self._begin(state["place"], state["block"])
        self._row, self._taken = state["row"], state["taken"]
        self._ledger.counts = Counts.from_state(state["counts"])

    def _begin(self, place: Place | None, number: int) -> None:
        self._reader = self._source.reader(place)
        self._load(number)

    def _load(self, number: int) -> None:
        place = self._reader.place()
        rows = self._reader.take(self._shuffle.buffer_size if self._shuffle else _ROWS_AT_ONCE)
        if self._shuffle and rows:
            key = self._round * _MOST_BLOCKS + number
            order = permute(np.arange(len(rows)), len(rows), self._shuffle.seed, key)
            rows = [rows[i] for i in order.tolist()]
        self._block = _Block(place, number, rows)
        self._row = self._taken = 0

    def _tokenised(self) -> Encoded | RejectedRow:
        """Returns what the row came to at which the stream stands; some after it are tokenized along."""
        block = self._block
        if self._row not in block.made:
            batch = block.rows[self._row : self._row + _ROWS_AT_ONCE]
            made = self._tokeniser.make([self._source.value_of(row) for row in batch])
            block.made = dict(enumerate(made, self._row))
        return block.made[self._row]

    def _count(self, made: Encoded | RejectedRow) -> None:
        if isinstance(made, Encoded):
            self._ledger.counts.accept(made.examples, made.cut_tokens, made.cut_targets)
        else:
            self._ledger.counts.reject(made)
            self._ledger.close()


class ConcatenatedStream:
    """The documents of a stream end to end, cut into rows of a fixed length; no document sees another."""

    def __init__(self, documents: ExampleStream, concatenation: Concatenation) -> None:
        self._documents = documents
        self._concatenation = concatenation
        self._before = documents.state()
        self._document: Example | None = None
        self._offset = 0

    def next(self) -> Example | None:
        """Returns the next row, None at the end of a round."""
        pieces: list[Example] = []
        missing = self._concatenation.length
        while missing:
            if self._document is None or self._offset == len(self._document.tokens):
                self._before, self._offset = self._documents.state(), 0
                self._document = self._documents.next()
                if self._document is None:
                    break
            piece = slice(self._offset, self._offset + missing)
            one = self._document
            pieces.append(Example(one.tokens[piece], one.is_target[piece], one.source))
            self._offset += len(pieces[-1].tokens)
            missing -= len(pieces[-1].tokens)
        if missing and self._concatenation.skip_last:
            self._documents.drop(pieces)
            self._before = self._documents.state()
            return None
        if not pieces:
            return None
        return joined(pieces)

    def restart(self) -> None:
        """Begins the next round."""
        self._documents.restart()
        self._before, self._document, self._offset = self._documents.state(), None, 0

    def state(self) -> State:
        """Returns where the document begins in which the stream stands, and how many of its tokens are used."""
        return {"documents": self._before, "offset": self._offset if self._document is not None else None}

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken: tokenizes one document again."""
        self._documents.restore(state["documents"])
        self._before, self._document, self._offset = state["documents"], None, 0
        if state["offset"] is not None:
            self._document, self._offset = self._documents.next(), state["offset"]


class Limited:
    """A stream of which a round gives a fixed number of examples, repeated where there are fewer."""

    def __init__(self, stream: Stream, count: int | None, name: str) -> None:
        """Takes a stream, the examples of a round (None is all there are), and the name of the data set."""
        self._stream = stream
        self._count = count
        self._name = name
        self._given = self._since_restart = 0

    def next(self) -> Example | None:
        """Returns the next example, None at the end of a round; raises DataError if there is none at all."""
        if self._given == self._count:
            return None
        example = self._stream.next()
        if example is None:
            if not self._since_restart:
                raise DataError(f"{self._name} has no row to draw from")
            if self._count is None:
                return None
            self._since_restart = 0
            self._stream.restart()
            return self.next()
        self._given += 1
        self._since_restart += 1
        return example

    def restart(self) -> None:
        """Begins the next round."""
        self._given = self._since_restart = 0
        self._stream.restart()

    def state(self) -> State:
        """Returns how many examples were given, and where the stream stands."""
        return {"given": self._given, "since_restart": self._since_restart, "stream": self._stream.state()}

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        self._given, self._since_restart = state["given"], state["since_restart"]
        self._stream.restore(state["stream"])
