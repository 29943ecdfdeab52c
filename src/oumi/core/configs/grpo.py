# SPDX-License-Identifier: Apache-2.0
"""Group relative policy optimisation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from oumi.core.configs.base import Params


class GrpoParams(Params):
    """Settings of the GRPO trainers."""

    model_init_kwargs: dict[str, Any] = {}
    """Arguments with which the trainer loads the model."""
    max_prompt_length: PositiveInt | None = None
    """Most tokens of a prompt."""
    max_completion_length: PositiveInt | None = None
    """Most tokens of an answer."""
    num_generations: PositiveInt | None = None
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.9
    """Of sampling."""
    remove_unused_columns: bool = False
    """Keep only the prompt column."""
    repetition_penalty: float | None = 1.0
    """Above 1 discourages repetition."""
    use_vllm: bool = False
    """Generate with vLLM."""
    vllm_mode: str | None = None
    """`colocate` or `server`."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of GPU memory for vLLM."""
    epsilon: float = 0.2
    """Clipping of the probability ratio."""
    log_completions: bool = False
    """Log the answers."""
    rollout_function: str | None = None
    """Registered function that generates."""
