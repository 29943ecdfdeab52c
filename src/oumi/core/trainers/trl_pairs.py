# SPDX-License-Identifier: Apache-2.0
"""Preferences and judged completions for TRL's trainers: padded batches with the names that their losses read.

TRL's own preparation takes no part: rows are tokenized, truncated and counted before, as for every trainer.

Shape letters: P pairs, D documents, S longest document of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from oumi.core.batch import IGNORED, collate, empty_batch
from oumi.core.data.pipeline.loader import Epoch
from oumi.core.errors import DataError
from oumi.core.trainers.trl_inputs import ModelInputs
from oumi.core.trainers.trl_rows import Join, as_item
from oumi.core.types.example import Example

Inputs = dict[str, Any]
_OF_DOCUMENTS = ("input_ids", "attention_mask", "completion_mask", "token_type_ids", "mm_token_type_ids")
"""Inputs that differ between a prompt with its own completion and the same prompt with another one."""


class PreferenceCollator:
    """Reads rows by their numbers, and returns their documents in the order in which TRL's losses expect them."""

    def __init__(self, rows: Epoch, form: str, join: Join, max_length: int | None) -> None:
        """Sets the rows, the form of their inputs, how documents are joined, and the longest document in tokens."""
        self._rows = rows
        self._form = form
        self._join = join
        self._max_length = max_length
        # A document for a rank without rows, which nothing counts. Its trained token keeps the means of TRL finite.
        is_target = np.arange(len(join.blank.tokens)) == len(join.blank.tokens) - 1
        self._blank = replace(join.blank, is_target=is_target, columns={"label": True})

    def __call__(self, numbers: list[int]) -> dict[str, Any]:
        """Returns a batch with its documents; a number beyond the rows stands for the blank row."""
        try:
            return self._item(numbers)
        except DataError as error:
            # Raised where the batch is used: a worker would add its traceback to the message.
            return {**as_item(empty_batch()), "error": error}

    def _item(self, numbers: list[int]) -> dict[str, Any]:
        has_rows = numbers[0] < len(self._rows)
        rows = [self._row(number) for number in numbers] if has_rows else []
        # What is counted, without images, which are read for the documents below.
        item = {**as_item(collate(rows) if rows else self._join([])), "numbers": numbers}
        if self._form == "judged":
            judged = rows or [self._blank]
            item["documents"] = self._join.collate(judged)
            item["mismatched"] = self._join.collate(self._mismatched(judged, numbers))
            item["label"] = torch.tensor([bool(row.columns["label"]) for row in judged])
            return item
        if self._form == "sides" and (seen := next((row for row in rows if row.images), None)) is not None:
            raise DataError(f"{seen.source}: ORPO and CPO of TRL do not pass images on; TRL_DPO and trainer OUMI do")
        pairs = [row.documents() for row in rows] or [[self._blank, self._blank]]
        # The chosen answers, then the rejected ones.
        item["documents"] = self._join.collate([pair[side] for side in (0, 1) for pair in pairs])
        return item

    def _row(self, number: int) -> Example:
        (example,) = self._rows.group(number)
        return example

    def _mismatched(self, rows: Sequence[Example], numbers: Sequence[int]) -> list[Example]:
        """Returns each prompt with the completion of another row, from which KTO estimates the KL.

        As in TRL, that is the row before it in the micro-batch. They are put together here, so they are right for any
        order of the rows. A row alone takes the completion of the next row of the data set: with its own there would be
        nothing to estimate.
        """
        others = [*rows[-1:], *rows[:-1]]
        if len(rows) == 1 and numbers[0] < len(self._rows):
            others = [self._row((numbers[0] + 1) % len(self._rows))]
        mismatched = []
        for row, other in zip(rows, others, strict=True):
            first, start = int(row.is_target.argmax()), int(other.is_target.argmax())
            tokens, is_target = (
                np.concatenate([getattr(row, name)[:first], getattr(other, name)[start:]])[: self._max_length]
                for name in ("tokens", "is_target")
            )
            mismatched.append(replace(row, tokens=tokens, is_target=is_target))
        return mismatched


def preference_inputs(item: Mapping[str, Any], form: str, inputs: ModelInputs, device: torch.device) -> Inputs:
    """Returns what a loss of TRL reads of an item of `PreferenceCollator`.

    Args:
        item: The item.
        form: `pair`: ids and masks of the chosen answers, then of the rejected ones [2P, S]. `sides`: each with names
            of their own [P, S]. `judged`: ids and masks of the completions and of the mismatched ones, labels [D, S].
        inputs: Turns documents into arguments of the model.
        device: The device of the model.
    """
    padded = _with_mask(inputs(item["documents"].to(device)))
    if form == "pair":
        return padded
    if form == "sides":
        sides = {name: padded[name].chunk(2) for name in ("input_ids", "attention_mask", "completion_mask")}
        arguments: Inputs = {}
        for i, side in enumerate(("chosen", "rejected")):
            ids, mask, is_target = (part[i] for part in sides.values())
            labels = ids.masked_fill(is_target == 0, IGNORED)
            arguments |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels}
        return arguments
    mismatched = _with_mask(inputs(item["mismatched"].to(device)))
    # The loss passes all other arguments to the model with both; it counts positions by itself.
    padded.pop("position_ids", None)
    others = {f"KL_{name}": mismatched[name] for name in _OF_DOCUMENTS if name in mismatched}
    return {**padded, **others, "label": item["label"].to(device)}


def _with_mask(inputs: Inputs) -> Inputs:
    """Returns inputs with the mask of the trained tokens in place of the labels."""
    labels = inputs.pop("labels")
    return {**inputs, "completion_mask": (labels != IGNORED).long()}
