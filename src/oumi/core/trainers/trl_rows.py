# SPDX-License-Identifier: Apache-2.0
"""The rows of a run for the trainers of TRL and transformers: in the native trainer's order, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from oumi.core.batch import IGNORED
from oumi.core.data.pipeline.loader import Epoch, share_of
from oumi.core.data.pipeline.mixture import permute
from oumi.core.distributed.world import World
from oumi.core.system.signals import only_parent_ends

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


def as_dataset(rows: Epoch, world: World) -> Dataset:
    """Returns the rows with token ids and labels, which are IGNORED for tokens that are not trained.

    With several ranks one more row follows, without a trained token: the batch of a rank for which no row is left.
    """
    examples = [example for i in range(len(rows)) for example in rows.group(i)]
    labels = [np.where(example.is_target, example.tokens, IGNORED) for example in examples]
    for example in labels:
        example[0] = IGNORED  # nothing predicts the first token
    tokens = [example.tokens for example in examples]
    if world.size > 1:
        tokens.append(np.zeros(2, dtype=tokens[0].dtype))  # two, since models shift labels by one
        labels.append(np.full(2, IGNORED, dtype=labels[0].dtype))
    return Dataset.from_dict({"input_ids": tokens, "labels": labels})


class RankBatches(Sampler[list[int]]):
    """The micro-batches of a rank in an epoch: every `world.size`-th one of those that a single process would train.

    Where the micro-batches are no multiple of the ranks, the last ranks get one of the blank row, so that all ranks
    take part in the same number of collective operations.
    """

    def __init__(self, num_rows: int, batch_size: int, world: World, seed: int | None) -> None:
        """Sets the rows without the blank one, and the seed of their order, None for the order of the rows."""
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._world = world
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the order; called by the trainer."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._num_rows // (self._batch_size * self._world.size))

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = list(range(self._num_rows))
        if self._seed is not None:
            order = permute(np.arange(self._num_rows), self._num_rows, self._seed, self._epoch).tolist()
        batches = [order[i : i + self._batch_size] for i in range(0, len(order), self._batch_size)]
        for batch in share_of(batches, self._world.rank, self._world.size):
            yield batch or [self._num_rows]


class EpochLoader(DataLoader[dict[str, Any]]):
    """Reads the batches of a rank. Accelerate does not take part: it would repeat rows to give each rank as many."""

    def __init__(self, rows: Dataset, batches: RankBatches, collator: Collator, args: Any) -> None:
        """Sets rows and batches, and takes the settings of workers from the arguments of the trainer."""
        super().__init__(
            rows,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=_init_worker,
        )
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the order; called by the trainer."""
        self._batches.set_epoch(epoch)


def _init_worker(worker: int) -> None:
    """Initializes a worker of a DataLoader: the step at which a signal stops the run still needs its rows."""
    only_parent_ends()
