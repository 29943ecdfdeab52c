# SPDX-License-Identifier: Apache-2.0
"""Lengths of prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Largest numbers of tokens of a prompt and of its answer; None sets no limit."""

    prompt: int | None = None
    """Of a longer prompt, the end is kept."""
    completion: int | None = None
    """Of a longer answer, the beginning is kept."""

    def within(self, num_tokens: int, num_before: int) -> tuple[int, int]:
        """Returns the slice that is kept of a document of `num_tokens`, of which `num_before` are its prompt."""
        first = 0 if self.prompt is None else max(num_before - self.prompt, 0)
        return first, num_tokens if self.completion is None else min(num_before + self.completion, num_tokens)


NO_LIMITS = AnswerLimits()
