# SPDX-License-Identifier: Apache-2.0
"""Group relative policy optimization."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from oumi.core.configs.base import Params


class GrpoParams(Params):
    """Settings of the GRPO trainers."""

    model_init_kwargs: dict[str, Any] = {}
    """Arguments with which the trainer loads the model."""
    max_prompt_length: PositiveInt | None = None
    """Maximum length of a prompt in tokens."""
    max_completion_length: PositiveInt | None = None
    """Maximum length of an answer in tokens."""
    num_generations: PositiveInt | None = None
    """Answers per prompt."""
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.9
    """Sampling temperature."""
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
    """Registered function that generates the answers."""
