# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a reference that were computed before the training, found by the tokens of a row.

A row is known by a digest of its tokens and of which of them are trained, so neither the order of the rows nor how a
step is cut matters. Shape letters: N trained positions of a batch, R rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from oumi.core.batch import Batch
from oumi.core.methods.log_probs import LogProbs

_DIGEST_BYTES = 16


class KeptLogProbs:
    """Returns the kept log-probabilities of the trained tokens of a batch, like the reference that computed them."""

    def __init__(self, digests: Sequence[bytes], ends: npt.NDArray[np.int64], values: npt.NDArray[np.floating]) -> None:
        """Takes the digest of each row [R], where its values end [R], and the values of all rows."""
        starts = [0, *ends[:-1].tolist()]
        self._places = dict(zip(digests, zip(starts, ends.tolist(), strict=True), strict=True))
        self._values = values

    @classmethod
    def of(cls, rows: Mapping[bytes, npt.NDArray[np.floating]]) -> KeptLogProbs:
        """Returns them from the values of each row by its digest."""
        ends = np.cumsum([len(values) for values in rows.values()], dtype=np.int64)
        return cls(list(rows), ends, np.concatenate(list(rows.values())))

    @classmethod
    def read(cls, path: Path) -> KeptLogProbs | None:
        """Returns what `write` wrote, None if there is no complete file."""
        try:
            arrays = load_file(path)
            return cls([row.tobytes() for row in arrays["digests"]], arrays["ends"], arrays["values"])
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, path: Path) -> None:
        """Writes one file, which appears whole or not at all."""
        digests = np.frombuffer(b"".join(self._places), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)
        ends = np.array([end for _, end in self._places.values()], dtype=np.int64)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".unfinished-{path.name}-{os.getpid()}")
        try:
            save_file({"digests": digests, "ends": ends, "values": self._values}, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def __call__(self, batch: Batch) -> LogProbs:
        """Returns the log-probabilities of a batch, whose rows must all be kept.

        A row without a data set is made up, to try how much memory its size takes; its values are zeros.
        """
        values_N = torch.zeros(batch.num_targets, dtype=torch.from_numpy(self._values[:0]).dtype)
        for i, (digest, trained) in enumerate(zip(row_digests(batch), _trained_of_rows(batch), strict=True)):
            if batch.sources[batch.rows[i]].dataset:
                start, end = self._places[digest]
                values_N[trained] = torch.from_numpy(self._values[start:end])
        values_N = values_N.to(batch.tokens.device)
        return LogProbs(values_N, batch.document_numbers(), len(batch.sources), values_N.new_empty(3, 0))


def values_of_rows(log_probs_N: torch.Tensor, batch: Batch) -> Iterator[tuple[bytes, npt.NDArray[np.floating]]]:
    """Yields the digest of each row of a batch, and the log-probabilities of its trained tokens."""
    values = log_probs_N.detach().cpu().numpy()
    for digest, trained in zip(row_digests(batch), _trained_of_rows(batch), strict=True):
        yield digest, values[trained].copy()


def _trained_of_rows(batch: Batch) -> list[slice]:
    """Returns which of the trained positions belong to each row [R]."""
    edges = np.searchsorted(batch.trained.cpu().numpy(), [batch.offsets[document] for document in batch.rows])
    return [slice(first, end) for first, end in pairwise(edges.tolist())]


def row_digests(batch: Batch) -> list[bytes]:
    """Returns a digest of each row [R]: of the lengths of its documents, their tokens, and their targets."""
    tokens, targets = (tensor.cpu().numpy() for tensor in (batch.tokens, batch.targets))
    digests = []
    for first, end in pairwise(batch.rows):
        start, stop = batch.offsets[first], batch.offsets[end]
        digest = hashlib.blake2b(repr(batch.lengths[first:end]).encode(), digest_size=_DIGEST_BYTES)
        digest.update(tokens[start:stop].tobytes())
        digest.update(targets[start:stop].tobytes())
        digests.append(digest.digest())
    return digests
