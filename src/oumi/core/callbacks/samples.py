# SPDX-License-Identifier: Apache-2.0
"""Answers rows of the validation set at each evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from oumi.core.models.decoding import Decoding
from oumi.core.models.generation import generate_all, max_positions
from oumi.core.run import Sample
from oumi.core.types.example import Example

_MAX_NEW_TOKENS = 128
_BATCH_SIZE = 8


class Sampler:
    """Answers the same rows of the validation set again and again, greedily, so that answers can be compared."""

    def __init__(self, rows: Any, tokenizer: Any, num_rows: int) -> None:
        """Chooses the rows.

        Args:
            rows: The validation set.
            tokenizer: The tokenizer of the rows.
            num_rows: How many of the first ones are answered; those with images are left out.
        """
        self._tokenizer = tokenizer
        self._rows: list[tuple[Example, int]] = []
        for i in range(len(rows)):
            for example in (document for part in rows.group(i) for document in part.documents()[:1]):
                start = _answer_start(example)
                if len(self._rows) < num_rows and not example.images and start:
                    self._rows.append((example, start))
            if len(self._rows) == num_rows:
                break
        ends = {tokenizer.eos_token_id, *(int(example.tokens[-1]) for example, _ in self._rows)}
        specials = set(tokenizer.all_special_ids)
        self._stops = tuple(token for token in ends if token in specials)

    def samples(self, model: Any) -> list[Sample]:
        """Returns the rows with the answers of a model of transformers, which is in evaluation mode."""
        limit = max_positions(model)
        rows = [(example, start) for example, start in self._rows if start < limit]
        decoding = Decoding(max_new_tokens=_MAX_NEW_TOKENS, stop_tokens=self._stops, max_length=limit)
        prompts = [example.tokens[:start].tolist() for example, start in rows]
        answers = generate_all(model, self._tokenizer, prompts, decoding, _BATCH_SIZE)
        return [
            Sample(
                source=str(example.source),
                prompt=str(self._tokenizer.decode(prompt)),
                reference=str(self._tokenizer.decode(example.tokens[start:].tolist(), skip_special_tokens=True)),
                answer=answer.text,
            )
            for (example, start), prompt, answer in zip(rows, prompts, answers, strict=True)
        ]


def _answer_start(example: Example) -> int:
    """Returns where the last answer of a row begins; of a text, all of which is trained, half of it is the prompt."""
    targets = np.flatnonzero(example.is_target)
    if not len(targets):
        return 0
    breaks = np.flatnonzero(np.diff(targets) > 1)
    start = int(targets[breaks[-1] + 1] if len(breaks) else targets[0])
    return start if start > 1 else len(example.tokens) // 2
