# SPDX-License-Identifier: Apache-2.0
"""Rows become chunks of tokens in several processes, in order, with little in flight."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from oumi.core.data.sources.source import IndexedRows
from oumi.core.data.store.token_table import BATCH_SIZE, Chunk, make_chunk
from oumi.core.data.tokenize.encoder import RowTokenizer
from oumi.core.data.tokenize.loss_mask import Rendered
from oumi.core.types.example import RejectedRow, Row

_IN_FLIGHT = 3
"""Batches that wait for each process."""

ToValue = Callable[[Row | RejectedRow], Row | RejectedRow]

_work: Any = None
"""What the processes below share; they are forked, so nothing needs to be sent to them."""


def chunks_of(
    raw: Iterable[Row | RejectedRow] | None,
    indexed: IndexedRows | None,
    value_of: ToValue,
    row_tokenizer: RowTokenizer,
    num_workers: int,
) -> Iterator[Chunk]:
    """Yields all rows as chunks, in order.

    Args:
        raw: The stored rows; not read where `indexed` is given.
        indexed: The same as a list; each process reads its own part.
        value_of: Makes of a stored row what it stands for.
        row_tokenizer: Makes tokens of that.
        num_workers: Processes; 1 does the work in this one.
    """
    if indexed is not None:
        batches: Iterator[Any] = (
            range(at, min(at + BATCH_SIZE, len(indexed))) for at in range(0, len(indexed), BATCH_SIZE)
        )
    else:
        rows = iter(raw or ())
        batches = iter(lambda: list(islice(rows, BATCH_SIZE)), [])

    def render(batch: Any) -> list[Rendered | RejectedRow]:
        return row_tokenizer.render(value_of(indexed[row] if indexed is not None else row) for row in batch)

    def encode(rendered: list[Rendered | RejectedRow]) -> Chunk:
        return make_chunk(rendered, row_tokenizer)

    if num_workers == 1:
        return _beside(render, encode, batches)
    return _forked(lambda batch: encode(render(batch)), batches, num_workers)


def _beside(
    render: Callable[[Any], list[Rendered | RejectedRow]],
    encode: Callable[[list[Rendered | RejectedRow]], Chunk],
    batches: Iterator[Any],
) -> Iterator[Chunk]:
    """Yields chunks; while a thread encodes one, which needs no Python, the next is rendered."""
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[Chunk] | None = None
        for batch in batches:
            rendered = render(batch)
            if waiting is not None:
                yield waiting.result()
            waiting = thread.submit(encode, rendered)
        if waiting is not None:
            yield waiting.result()


def _forked(work: Callable[[Any], Chunk], batches: Iterator[Any], num_workers: int) -> Iterator[Chunk]:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are parallel, not the threads in each
    with multiprocessing.get_context("fork").Pool(num_workers) as pool:
        waiting = deque(pool.apply_async(_do, (batch,)) for batch in islice(batches, num_workers * _IN_FLIGHT))
        while waiting:
            chunk = waiting.popleft().get()
            for batch in islice(batches, 1):
                waiting.append(pool.apply_async(_do, (batch,)))
            yield chunk


def _do(batch: Any) -> Chunk:
    made: Chunk = _work(batch)
    return made
