# SPDX-License-Identifier: Apache-2.0
"""The rows of a run for the trainers of TRL and transformers: in the native trainer's order, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from oumi.core.batch import Batch, empty_batch
from oumi.core.data.build_stream import StreamedRows
from oumi.core.data.pipeline.loader import Collate, Epoch, share_of
from oumi.core.data.pipeline.mixture import permute
from oumi.core.data.tokenize.images import ImageEncoder
from oumi.core.data.tokenize.preprocessor import Preprocessor
from oumi.core.distributed.world import World
from oumi.core.errors import DataError
from oumi.core.run import StepSource
from oumi.core.system.signals import only_parent_ends
from oumi.core.trainers.trl_inputs import labels_of
from oumi.core.types.conversation import ContentItem, Type
from oumi.core.types.example import Example, Source

Collator = Callable[[list[Any]], dict[str, Any]]
_BLANK_SIDE = 224
"""Pixels of a side of the blank image, which every processor takes."""


class RowNumbers(Dataset):
    """The numbers of rows, which the preparation of other trainers leaves as they are."""

    def map(self, *_: Any, **__: Any) -> RowNumbers:
        """Returns the numbers unchanged: the tokens of their rows are ready."""
        return self


def row_numbers(rows: Epoch | StreamedRows) -> RowNumbers:
    """Returns a data set of row numbers, since other trainers want a data set; `RowCollator` reads the rows."""
    return RowNumbers.from_dict({"row": np.arange(1 if isinstance(rows, StreamedRows) else len(rows))})


class RowCollator:
    """Reads rows by their numbers and returns them as one batch. Called by the workers of a DataLoader, if any."""

    def __init__(self, rows: Epoch, join: Collate) -> None:
        """Sets the rows, and the function that joins examples into a batch."""
        self._rows = rows
        self._join = join

    def __call__(self, numbers: list[int]) -> dict[str, Any]:
        """Returns a batch and its labels; a number beyond the rows stands for the blank row."""
        examples = [example for i in numbers if i < len(self._rows) for example in self._rows.group(i)]
        try:
            return as_item(self._join(examples))
        except DataError as error:
            # Raised where the batch is used: a worker would add its traceback to the message.
            return {**as_item(empty_batch()), "error": error}


class Join:
    """Joins examples into a batch that all ranks compute by the same modules.

    A rank without rows gets a blank one. So does, with several ranks, one whose rows have no images if the model takes
    some: the others would wait for it to gather the weights of the image encoder, or their gradients. The blank row is
    the last document of a batch and belongs to none of its rows.
    """

    def __init__(self, preprocessor: Preprocessor, world_size: int) -> None:
        """Sets the preprocessor, which reads images, and the number of ranks."""
        self.collate = preprocessor.collate
        image_encoder = preprocessor.image_encoder if world_size > 1 else None
        self._needs_image = image_encoder is not None
        self.blank = _blank_row(image_encoder)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Returns examples end to end as a batch; raises DataError as the preprocessor does."""
        has_image = any(items for example in examples for items in example.images)
        if examples and (has_image or not self._needs_image):
            return self.collate(examples)
        batch = self.collate([*examples, self.blank])
        return replace(batch, rows=batch.rows[:-1], columns=batch.columns[:-1])


def _blank_row(image_encoder: ImageEncoder | None) -> Example:
    """Returns a row without a trained token, with an image if there is an encoder."""
    tokens, images = np.zeros(2, dtype=np.int32), ()  # two, since models shift labels by one
    if image_encoder is not None:
        from PIL import Image  # only needed for models that take images

        content = BytesIO()
        image = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE))
        image.save(content, "PNG")
        tokens = np.concatenate([image_encoder.expansion(image), tokens])
        images = ((ContentItem(type=Type.IMAGE_BINARY, binary=content.getvalue()),),)
    return Example(tokens, np.zeros(len(tokens), dtype=np.bool_), Source("", "no row", 0), images=images)


def as_item(batch: Batch) -> dict[str, Any]:
    """Returns a batch in the form in which other trainers pass it on; they count its labels."""
    return {"batch": batch, "labels": labels_of(batch)[None]}


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

    def __init__(self, rows: Sequence[Any], batches: RankBatches, collator: Collator, args: Any) -> None:
        """Sets rows and batches, and takes the settings of workers from the arguments of the trainer."""
        super().__init__(
            rows,  # type: ignore[arg-type]  # any sequence will do
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


class StreamBatches:
    """The micro-batches of a rank of a stream, from a step on. Without a length: the trainer counts its steps."""

    def __init__(self, source: StepSource, step: int) -> None:
        """Sets the source of the steps, at its position, and the step that comes next."""
        self._source = source
        self._step = step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # The position of the source is that of the last step from which a micro-batch was taken.
        for batches in self._source.from_step(self._step):
            yield from map(as_item, batches)


def _init_worker(worker: int) -> None:
    """Initializes a worker of a DataLoader: the step at which a signal stops the run still needs its rows."""
    only_parent_ends()
