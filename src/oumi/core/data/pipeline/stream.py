# SPDX-License-Identifier: Apache-2.0
"""Streams of one data set: rows are read and tokenized during training, and not stored.

A stream yields examples until its round is over, then starts another round. Its state is a few numbers. To resume, it
reads at most the current block of rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from oumi.core.data.ledger import Counts, Ledger
from oumi.core.data.pipeline.concatenate import Concatenation, join_pieces
from oumi.core.data.pipeline.mixture import permute
from oumi.core.data.pipeline.share import RankTokenizer
from oumi.core.data.sources.reader import Place, RowReader
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.errors import DataError
from oumi.core.types.example import Encoded, Example, RejectedRow, Row

State = dict[str, Any]
"""The position of a stream, as JSON values."""
_ROWS_AT_ONCE = 64
"""Rows that are tokenized together."""
_MAX_BLOCKS = 1 << 40
"""More blocks than a round can have, so that no two blocks of any rounds are shuffled with the same key."""


class DatasetRows(Protocol):
    """The rows of a data set, as a stream needs them."""

    def reader(self, place: Place | None) -> RowReader:
        """Returns a reader that starts at a place, or at the first row."""
        ...

    def value_of(self, row: Row | RejectedRow) -> Row | RejectedRow:
        """Returns a stored row as the record that it holds, such as a conversation."""
        ...


@dataclass(frozen=True)
class Shuffle:
    """How a stream is shuffled: within blocks of `buffer_size` rows."""

    seed: int
    buffer_size: int


@dataclass
class _Block:
    """Consecutive rows, in the order in which they are trained."""

    place: Place
    """Of the first row in the file."""
    number: int
    """Of the block in its round, from 0."""
    rows: list[Row | RejectedRow]
    encoded: dict[int, Encoded | RejectedRow] = field(default_factory=dict)
    """Rows of the last batch that was tokenized, by index."""


class ExampleStream:
    """The examples of a data set, row by row. Rows are shuffled block by block, so that resuming reads one block."""

    def __init__(self, rows: DatasetRows, row_tokenizer: RowTokenizer, ledger: Ledger, shuffle: Shuffle | None) -> None:
        """Sets the rows, their tokenizer, the ledger that counts them, and their shuffle, if there is one."""
        self._dataset = rows
        self._row_tokenizer: RowTokenizer | RankTokenizer = row_tokenizer
        self._ledger = ledger
        self._shuffle = shuffle
        self._round = self._row = self._num_yielded = 0
        self._load(rows.reader(None), 0)

    def next(self) -> Example | None:
        """Returns the next example, None at the end of a round.

        Raises:
            DataError: More rows are rejected than the ledger allows.
        """
        while (block := self._block).rows:  # an empty block ends the round
            if self._row == len(block.rows):
                self._load(self._reader, block.number + 1)
                continue
            if self._row not in block.encoded:
                # With the rows after it, since tokenizing a batch is faster.
                batch = block.rows[self._row : self._row + _ROWS_AT_ONCE]
                results = self._row_tokenizer.make([self._dataset.value_of(row) for row in batch])
                block.encoded = dict(enumerate(results, self._row))
            encoded = block.encoded[self._row]
            # Later rounds have the same rows, and a row that was split is counted with its first example.
            is_counted = self._round > 0 or self._num_yielded > 0
            if isinstance(encoded, RejectedRow):
                if not is_counted:
                    self._ledger.counts.reject(encoded)
                    self._ledger.close()
            else:
                if not is_counted:
                    self._ledger.counts.accept(encoded)
                    self._ledger.warn(encoded)
                if self._num_yielded < len(encoded.examples):
                    self._num_yielded += 1
                    return encoded.examples[self._num_yielded - 1]
            self._row, self._num_yielded = self._row + 1, 0
        return None

    def share(self, group: Any) -> None:
        """Tokenizes together with the other ranks of a process group from here on: all make the same calls."""
        assert isinstance(self._row_tokenizer, RowTokenizer), "shared once"
        self._row_tokenizer = RankTokenizer(self._row_tokenizer, group)

    def drop(self, pieces: Sequence[Example]) -> None:
        """Counts the rest of the last documents of a round as cut off."""
        if self._round == 0:
            self._ledger.counts.cut(len(pieces), sum(len(piece.tokens) for piece in pieces))

    def restart(self) -> None:
        """Starts the next round at the first row, in another order if there is a shuffle."""
        self._round += 1
        self._load(self._dataset.reader(None), 0)

    def state(self) -> State:
        """Returns the round, the block, the position in it, and the counts so far."""
        # Checkpoints contain these keys, so they must stay.
        return {
            "round": self._round,
            "place": self._block.place,
            "block": self._block.number,
            "row": self._row,
            "taken": self._num_yielded,
            "counts": self._ledger.counts.to_state(),
        }

    def restore(self, state: State) -> None:
        """Returns to the position of `state`; the rows of one block are read again."""
        self._round = state["round"]
        self._load(self._dataset.reader(state["place"]), state["block"])
        self._row, self._num_yielded = state["row"], state["taken"]
        self._ledger.counts = Counts.from_state(state["counts"])

    def _load(self, reader: RowReader, number: int) -> None:
        """Reads block `number` of the round from a reader at its start; the block after the last row is empty."""
        self._reader, place = reader, reader.place()
        rows = reader.take(self._shuffle.buffer_size if self._shuffle else _ROWS_AT_ONCE)
        if self._shuffle and rows:
            key = self._round * _MAX_BLOCKS + number
            order = permute(np.arange(len(rows)), len(rows), self._shuffle.seed, key)
            rows = [rows[i] for i in order.tolist()]
        self._block = _Block(place, number, rows)
        # A row that was split yields several examples, so a position has two numbers.
        self._row = self._num_yielded = 0


class ConcatenatedStream:
    """The documents of a stream end to end, cut into rows of a fixed length; they do not attend to each other."""

    def __init__(self, documents: ExampleStream, concatenation: Concatenation) -> None:
        self._documents = documents
        self._concatenation = concatenation
        self._state_before = documents.state()
        """State of the documents before the current one; the position is that state and an offset in the document."""
        self._document: Example | None = None
        self._offset = 0

    def next(self) -> Example | None:
        """Returns the next row, None at the end of a round."""
        # A piece of each document that the row contains.
        pieces: list[Example] = []
        missing = self._concatenation.length
        while missing:
            if self._document is None or self._offset == len(self._document.tokens):
                self._state_before, self._offset = self._documents.state(), 0
                self._document = self._documents.next()
                if self._document is None:
                    break
            document, span = self._document, slice(self._offset, self._offset + missing)
            pieces.append(Example(document.tokens[span], document.is_target[span], document.source))
            self._offset += len(pieces[-1].tokens)
            missing -= len(pieces[-1].tokens)
        if missing and self._concatenation.skip_last:
            self._documents.drop(pieces)
            # `drop` has changed the counts, which are part of the state.
            self._state_before = self._documents.state()
            return None
        return join_pieces(pieces) if pieces else None

    def share(self, group: Any) -> None:
        """Tokenizes together with the other ranks of a process group from here on."""
        self._documents.share(group)

    def restart(self) -> None:
        """Starts the next round."""
        self._documents.restart()
        self._state_before, self._document, self._offset = self._documents.state(), None, 0

    def state(self) -> State:
        """Returns the state before the current document, and how many of its tokens are used."""
        return {"documents": self._state_before, "offset": self._offset if self._document is not None else None}

    def restore(self, state: State) -> None:
        """Returns to the position of `state`; one document is tokenized again."""
        self._documents.restore(state["documents"])
        self._state_before, self._document, self._offset = state["documents"], None, 0
        if state["offset"] is not None:
            self._document, self._offset = self._documents.next(), state["offset"]


class LimitedStream:
    """A stream whose rounds have a fixed number of examples; a shorter one is repeated."""

    def __init__(self, stream: ExampleStream | ConcatenatedStream, count: int | None, name: str) -> None:
        """Sets the stream, the number of examples of a round (None for all), and the name of the data set."""
        self._stream = stream
        self._count = count
        self._name = name
        self._num_drawn = self._since_restart = 0

    def next(self) -> Example | None:
        """Returns the next example, None at the end of a round.

        Raises:
            DataError: The data set has no example at all.
        """
        if self._num_drawn == self._count:
            return None
        example = self._stream.next()
        if example is None:
            if not self._since_restart:  # it would restart forever
                raise DataError(f"{self._name} has no rows to draw from")
            if self._count is None:
                return None
            self._since_restart = 0
            self._stream.restart()
            return self.next()
        self._num_drawn += 1
        self._since_restart += 1
        return example

    def share(self, group: Any) -> None:
        """Tokenizes together with the other ranks of a process group from here on."""
        self._stream.share(group)

    def restart(self) -> None:
        """Starts the next round."""
        self._num_drawn = self._since_restart = 0
        self._stream.restart()

    def state(self) -> State:
        """Returns how many examples were drawn, and the state of the stream."""
        # Checkpoints contain these keys, so they must stay.
        return {"given": self._num_drawn, "since_restart": self._since_restart, "stream": self._stream.state()}

    def restore(self, state: State) -> None:
        """Returns to the position of `state`."""
        self._num_drawn, self._since_restart = state["given"], state["since_restart"]
        self._stream.restore(state["stream"])
