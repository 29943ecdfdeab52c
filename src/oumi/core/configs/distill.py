# SPDX-License-Identifier: Apache-2.0
"""Distillation: GKD and GOLD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from oumi.core.configs.base import Complaint, Params
from oumi.core.configs.paths import PathText

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class GkdParams(Params):
    """Generalized knowledge distillation."""

    teacher_model_name_or_path: PathText | None = None
    """The model to learn from."""
    teacher_model_init_kwargs: dict[str, Any] = {"dtype": "auto"}
    """Arguments with which it is loaded."""
    temperature: PositiveShare = 0.9
    """Sampling temperature."""
    lmbda: Share = 0.5
    """Share of answers that the student generates."""
    beta: Share = 0.5
    """0 forward KL, 1 reverse KL, between them Jensen-Shannon."""
    max_new_tokens: PositiveInt = 128
    """Maximum length of an answer in tokens."""
    disable_dropout: bool = True
    """Train without dropout."""
    seq_kd: bool = False
    """Train on answers of the teacher."""

    def complaints(self) -> Iterator[Complaint]:
        if self.teacher_model_name_or_path is not None and not self.teacher_model_name_or_path.strip():
            yield "teacher_model_name_or_path", "must not be blank"


class GoldParams(Params):
    """Distillation between models with different tokenizers."""

    teacher_model_name_or_path: PathText | None = None
    """The model to learn from."""
    teacher_model_init_kwargs: dict[str, Any] = {"torch_dtype": "auto"}
    """Arguments with which it is loaded."""
    teacher_tokenizer_name_or_path: PathText | None = None
    """Null takes the teacher's."""
    temperature: PositiveShare = 0.9
    """Sampling temperature."""
    top_p: PositiveShare = 0.95
    """Cumulative probability of the tokens to sample from."""
    top_k: NonNegativeInt = 0
    """Number of most likely tokens to sample from; 0 for all."""
    lmbda: Share = 0.5
    """Share of answers that the student generates."""
    beta: Share = 0.5
    """0 forward KL, 1 reverse KL."""
    max_completion_length: PositiveInt = 128
    """Maximum length of an answer in tokens."""
    disable_dropout: bool = True
    """Train without dropout."""
    seq_kd: bool = False
    """Train on answers of the teacher."""
    use_uld_loss: bool = False
    """Universal logit distillation."""
    use_extended_uld: bool = True
    """Align tokens of both tokenizers."""
    uld_use_hybrid_loss: bool = False
    """Treat matched and unmatched tokens differently."""
    uld_hybrid_matched_weight: float | None = None
    """Weight of matched tokens."""
    uld_hybrid_unmatched_weight: float | None = None
    """Weight of unmatched tokens."""
    uld_crossentropy_weight: float = 0.0
    """Weight of the cross-entropy."""
    uld_distillation_weight: float = 1.0
    """Weight of the distillation."""
    uld_student_temperature: float = 1.0
    """Softens the student."""
    uld_teacher_temperature: float = 1.0
    """Softens the teacher."""
    uld_skip_student_eos: bool = True
    """Leave the student's end token out."""
    uld_skip_teacher_eos: bool = True
    """Leave the teacher's end token out."""
    use_transformers_paged: bool = False
    """Deprecated, not read."""
    use_vllm: bool = False
    """Generate with vLLM."""
    vllm_mode: Literal["server", "colocate"] = "server"
    """Where vLLM runs."""
    vllm_server_host: str = "0.0.0.0"
    """Host of the vLLM server."""
    vllm_server_port: PositiveInt = 8001
    """Port of the vLLM server."""
    vllm_server_timeout: PositiveFloat = 240.0
    """Seconds to wait for the vLLM server."""
    vllm_gpu_memory_utilization: PositiveShare = 0.9
    """Share of GPU memory for vLLM."""
    vllm_tensor_parallel_size: PositiveInt = 1
    """GPUs of vLLM."""
    vllm_guided_decoding_regex: str | None = None
    """Answers must match it."""
    vllm_sync_frequency: PositiveInt = 1
    """Steps between weight updates of vLLM."""
    vllm_enable_sleep_mode: bool = False
    """Let vLLM sleep while training."""

    def complaints(self) -> Iterator[Complaint]:
        if self.teacher_model_name_or_path is not None and not self.teacher_model_name_or_path.strip():
            yield "teacher_model_name_or_path", "must not be blank"
        weights = (self.uld_hybrid_matched_weight, self.uld_hybrid_unmatched_weight)
        if self.use_uld_loss and self.uld_use_hybrid_loss and (weights[0] is None) != (weights[1] is None):
            yield "uld_hybrid_matched_weight", "both hybrid weights must be set, or neither"
        for name in (
            "uld_hybrid_matched_weight",
            "uld_hybrid_unmatched_weight",
            "uld_crossentropy_weight",
            "uld_distillation_weight",
        ):
            value = getattr(self, name)
            if self.use_uld_loss and value is not None and value < 0:
                yield name, f"got {value:g}, must be >= 0"
        for name in ("uld_student_temperature", "uld_teacher_temperature"):
            if self.use_uld_loss and getattr(self, name) <= 0:
                yield name, f"got {getattr(self, name):g}, must be > 0"
