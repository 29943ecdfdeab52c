# SPDX-License-Identifier: Apache-2.0
"""The model of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import PositiveInt

from oumi.core.configs.base import Complaint, Params
from oumi.core.configs.paths import PathText
from oumi.core.errors import did_you_mean

DTYPES = {
    "auto": "auto",
    "float32": "float32", "f32": "float32", "float": "float32",
    "float16": "float16", "f16": "float16", "half": "float16",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float64": "float64", "f64": "float64", "double": "float64",
}  # fmt: skip
"""Accepted spelling of a dtype -> its name in torch."""


class ModelParams(Params):
    """The model, its tokenizer and its chat template."""

    model_name: PathText
    """Hub id or local directory of a model."""
    adapter_model: PathText | None = None
    """A PEFT adapter to load on top."""
    tokenizer_name: PathText | None = None
    """Hub id or local directory of a tokenizer; null takes the model's."""
    tokenizer_pad_token: str | None = None
    """Padding token."""
    tokenizer_kwargs: dict[str, Any] = {}
    """Arguments of AutoTokenizer.from_pretrained."""
    processor_kwargs: dict[str, Any] = {}
    """Arguments of AutoProcessor.from_pretrained."""
    model_max_length: PositiveInt | None = None
    """Maximum length of a row in tokens; longer rows are truncated."""
    load_pretrained_weights: bool = True
    """False starts from random weights."""
    trust_remote_code: bool = False
    """Allow code that comes with the model."""
    torch_dtype_str: str = "auto"
    """`auto`, `float32`, `bfloat16`, `float16` or `float64`."""
    compile: bool = False
    """Must be false here: use training.compile."""
    chat_template: str | None = None
    """Name of a bundled template, or a file; null takes the tokenizer's, `auto` requires that it has one."""
    chat_template_kwargs: dict[str, Any] | None = None
    """For inference."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, or a kernel of the Hub; null chooses."""
    device_map: str | None = "auto"
    """Where inference places the model."""
    model_kwargs: dict[str, Any] = {}
    """Changes to the model's own config; `disable_dropout` sets all dropout to zero."""
    enable_liger_kernel: bool = False
    """Use Liger's fused kernels."""
    shard_for_eval: bool = False
    """For evaluation."""
    freeze_layers: list[str] = []
    """Modules that are not trained: paths, patterns with `*`, or parts such as `vision_encoder` and `projector`."""
    model_revision: str | None = None
    """Branch, tag or commit on the Hub."""
    tool_call_parser: str | None = None
    """For inference."""
    adapter_trainable: bool | None = None
    """Train the adapter of adapter_model further, as it is done unless this is false."""
    text_only: bool = False
    """Of a model for text and images, load and save only the language model."""

    @property
    def torch_dtype(self) -> Any:
        """Returns the torch dtype, None for `auto`."""
        name = DTYPES[self.torch_dtype_str.lower()]
        if name == "auto":
            return None
        import torch  # reading a config must not take the seconds of this import

        return getattr(torch, name)

    def complaints(self) -> Iterator[Complaint]:
        if not self.model_name.strip():
            yield "model_name", "required, but empty"
        if self.torch_dtype_str.lower() not in DTYPES:
            names = sorted({*DTYPES.values()})
            hint = did_you_mean(self.torch_dtype_str, DTYPES)
            yield "torch_dtype_str", f"got '{self.torch_dtype_str}', must be one of {', '.join(names)}{hint}"
        for key in self.processor_kwargs:
            if key in ModelParams.model_fields:
                yield f"processor_kwargs.{key}", f"is a key of 'model' itself: write it there, as '{key}'"
