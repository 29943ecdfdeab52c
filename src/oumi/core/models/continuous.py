# SPDX-License-Identifier: Apache-2.0
"""Continuous batching (Yu et al., OSDI 2022): a row leaves the batch with its last token, and the next one joins it.

Shape letters: B rows, S tokens that are computed, L places of a row in the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from oumi.core.models.decoding import Decoding, adjusted, is_last
from oumi.core.models.joined_cache import cache_argument, has_states, join, new_cache

_REFILL = 4
"""A batch is refilled when this part of it is free, since joining copies the keys and values of all rows."""
_SPREAD = 1.25
"""Prompts share a call while the longest has at most so many times the tokens of the shortest."""
_LONG = 512
"""Tokens of a prompt that is worth a call of its own, in which attention needs no mask."""


@dataclass
class _Row:
    """A prompt, and its answer so far."""

    prompt: Sequence[int]
    generator: torch.Generator | None
    answer: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    def last(self, count: int) -> list[int]:
        """Returns the last tokens, with any token before them if there are fewer."""
        tokens = self.answer[-count:] if len(self.answer) >= count else [*self.prompt, *self.answer][-count:]
        return [0] * (count - len(tokens)) + tokens


class ContinuousBatch:
    """Answers prompts in batches that are refilled."""

    def __init__(self, model: Any, tokenizer: Any, decoding: Decoding, batch_size: int) -> None:
        """Prepares an empty batch.

        Args:
            model: A model that `has_joinable_cache`.
            tokenizer: Its tokenizer.
            decoding: How tokens are chosen.
            batch_size: Most rows of the batch.
        """
        self._model, self._tokenizer, self._decoding, self._batch_size = model, tokenizer, decoding, batch_size
        self._accepted = inspect.signature(model.forward).parameters.keys()
        self._rows: list[_Row] = []
        self._cache = new_cache(model)
        self._width = 0
        """Places of the cache for each row, the last of which are its tokens [L]."""
        # A recurrent state takes padding for tokens.
        self._spread = 1.0 if any(map(has_states, self._cache.layers)) else _SPREAD

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """Returns the tokens of the answer to each prompt, the one that ends it included."""
        rows = [
            _Row(prompt, torch.Generator().manual_seed(seeds[i]) if seeds else None) for i, prompt in enumerate(prompts)
        ]
        # Those of similar length together, as little padding costs.
        waiting = sorted(rows, key=len)
        while waiting or self._rows:
            num_free = self._batch_size - len(self._rows)
            if waiting and num_free * _REFILL >= self._batch_size:
                self._add(waiting[:num_free])
                waiting = waiting[num_free:]
            else:
                self._width += 1
                self._compute(self._rows, 1, self._width, self._cache)
            self._drop_finished()
        return [row.answer for row in rows]

    def _add(self, rows: list[_Row]) -> None:
        """Computes prompts and the first token of their answers, and joins them to the batch."""
        caches = [self._cache] if self._rows else []
        for group in self._groups(rows):
            caches.append(new_cache(self._model))
            longest = len(group[-1])
            self._compute(group, longest, longest, caches[-1])
            self._rows += group
        # Keys and values of the last token of each answer are computed by the next step.
        self._width = max(len(row) for row in self._rows) - 1
        self._cache = join(caches, self._width)

    def _groups(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Yields rows whose prompts, in ascending length, are computed together."""
        group = rows[:1]
        for row in rows[1:]:
            if len(row) > self._spread * len(group[0]) or len(row) > _LONG:
                yield group
                group = []
            group.append(row)
        yield group

    def _compute(self, rows: list[_Row], num_tokens: int, width: int, cache: DynamicCache) -> None:
        """Adds the next token to each answer, and the keys and values of its last ones before to the cache.

        Args:
            rows: The rows of the cache.
            num_tokens: How many of the last tokens the cache lacks.
            width: Places of each row in the cache, those of these tokens included.
            cache: The cache, which is changed.
        """
        device = self._model.device
        first_places_B1 = width - torch.tensor([[len(row)] for row in rows], device=device)
        places_L = torch.arange(width, device=device)
        inputs: dict[str, Any] = {"logits_to_keep": 1, "position_ids": places_L[width - num_tokens :] - first_places_B1}
        inputs["position_ids"] = inputs["position_ids"].clamp(min=0)
        inputs = {name: value for name, value in inputs.items() if name in self._accepted}
        inputs[cache_argument(self._model)] = cache
        inputs["attention_mask"] = (places_L >= first_places_B1).long()
        tokens_BS = torch.tensor([row.last(num_tokens) for row in rows], device=device)
        # The model's own, since some families take their inputs otherwise, such as Mamba without a mask.
        inputs = self._model.prepare_inputs_for_generation(
            tokens_BS, use_cache=True, is_first_iteration=num_tokens == width, **inputs
        )
        logits_BV = self._model(**inputs).logits[:, -1]
        generators = [row.generator for row in rows if row.generator is not None]
        scores_BV = adjusted(logits_BV, [row.answer for row in rows], self._decoding, generators)
        for row, token in zip(rows, scores_BV.argmax(dim=-1).tolist(), strict=True):
            row.answer.append(token)

    def _drop_finished(self) -> None:
        """Takes finished rows out of the batch."""
        kept = [i for i, row in enumerate(self._rows) if not self._is_finished(row)]
        if 0 < len(kept) < len(self._rows):
            self._cache.reorder_cache(torch.tensor(kept, device=self._model.device))
        self._rows = [self._rows[i] for i in kept]

    def _is_finished(self, row: _Row) -> bool:
        has_room = len(row.answer) < self._decoding.max_new_tokens and len(row) < self._decoding.max_length
        return not has_room or is_last(row.answer, self._tokenizer, self._decoding)
