# SPDX-License-Identifier: Apache-2.0
"""Tokenizes rows in several processes, in order, with few batches in memory."""

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
"""Batches for each process that are submitted, but not returned yet."""

ToValue = Callable[[Row | RejectedRow], Row | RejectedRow]

_work: Any = None
"""Work of the forked processes: they inherit it, since a tokenizer and open files cannot be sent to them."""


def chunks_of(
    raw: Iterable[Row | RejectedRow] | None,
    indexed: IndexedRows | None,
    value_of: ToValue,
    row_tokenizer: RowTokenizer,
    num_workers: int,
) -> Iterator[Chunk]:
    """Yields all rows as chunks, in order.

    Args:
        raw: The stored rows; not read if `indexed` is not None.
        indexed: The same rows with random access; each process reads its own part of them.
        value_of: Returns a stored row as the record that it holds.
        row_tokenizer: Tokenizes records.
        num_workers: Number of processes; 1 uses this process alone.
    """
    # A process that can read any row gets the range of its rows, so that no rows are sent between processes.
    if indexed is not None:
        batches: Iterator[Any] = (
            range(first, min(first + BATCH_SIZE, len(indexed))) for first in range(0, len(indexed), BATCH_SIZE)
        )
    else:
        rows = iter(raw or ())
        batches = iter(lambda: list(islice(rows, BATCH_SIZE)), [])

    def render(batch: Any) -> list[Rendered | RejectedRow]:
        return row_tokenizer.render(value_of(indexed[row] if indexed is not None else row) for row in batch)

    def encode(rendered: list[Rendered | RejectedRow]) -> Chunk:
        return make_chunk(rendered, row_tokenizer)

    if num_workers > 1:
        yield from _in_processes(lambda batch: encode(render(batch)), batches, num_workers)
        return
    # While a thread encodes a batch, which does not hold the interpreter lock, the next one is rendered.
    with ThreadPoolExecutor(1) as thread:
        # One at a time, so that the chunks stay in order.
        pending: Future[Chunk] | None = None
        for batch in batches:
            rendered = render(batch)
            if pending is not None:
                yield pending.result()
            pending = thread.submit(encode, rendered)
        if pending is not None:
            yield pending.result()


def _in_processes(work: Callable[[Any], Chunk], batches: Iterator[Any], num_workers: int) -> Iterator[Chunk]:
    # Set before the fork, which copies it.
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads in each process would compete for the same cores
    with multiprocessing.get_context("fork").Pool(num_workers) as pool:
        pending = deque(pool.apply_async(_run_work, (batch,)) for batch in islice(batches, num_workers * _IN_FLIGHT))
        while pending:
            chunk = pending.popleft().get()
            for batch in islice(batches, 1):  # one for each that is returned: memory stays bounded
                pending.append(pool.apply_async(_run_work, (batch,)))
            yield chunk


def _run_work(batch: Any) -> Chunk:
    chunk: Chunk = _work(batch)
    return chunk
