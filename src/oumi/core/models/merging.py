# SPDX-License-Identifier: Apache-2.0
"""Writes an adapter with its base, or merged into it, and proves that the merged model computes the same."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from oumi.core.errors import ConfigError, ExportError
from oumi.core.log import logger
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import logits_of, trial
from oumi.core.models.load import load_model
from oumi.core.models.saving import ModelWriter
from oumi.core.models.twin import ordinary_tokens
from oumi.core.plan.parts import ModelPlan

_NUM_TOKENS, _NUM_ANSWERED = 24, 8
"""Tokens of the prompt of a proof, and of the greedy answer to it."""
_BOUNDS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""Largest difference of a logit as a share of the largest logit: merged weights are rounded once more."""


@dataclass(frozen=True)
class Answer:
    """What a model computes for a few tokens."""

    logits: torch.Tensor
    """Logits [S, V] at each token of the prompt and of the answer."""
    tokens: tuple[int, ...]
    """The greedy answer."""


def write_with_base(adapted: Any, plan: ModelPlan, directory: Path, mode: str) -> None:
    """Writes an adapter on the weights of the files, see `ModelWriter.write`. Takes the model apart.

    Besides the weights of the files, which are mapped, one layer is in memory at a time.

    Raises:
        ExportError: The merged model, read again, does not give the logits and the greedy answer of base and adapter.
    """
    if mode != "MERGED":
        ModelWriter(adapted, plan).write(directory, mode)
        return
    writer, expected = ModelWriter(adapted, plan), _answer(adapted)
    if expected is not None and not expected.logits.isfinite().all():
        raise ExportError("the logits of the adapter on its base are not finite, so it is not merged")
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".tmp-merged-") as folder:
        writer.write(directory, mode, merge=lambda model: _merge_in_files(model, Path(folder)))
    if expected is None:
        logger.warning("the merged model is not compared with base and adapter: it takes more than text")
        return
    own = replace(
        plan, name=str(directory), revision=None, pretrained=True, config_overrides={}, freeze=(), dtype="auto",
        quantization=None,
    )  # fmt: skip
    merged = load_model(own, torch.device("cpu"))
    if reason := difference(expected, _answer(merged, expected.tokens), merged.dtype):
        raise ExportError(f"the merged model is not the adapter on its base: {reason}")


def _merge_in_files(adapted: Any, folder: Path) -> None:
    """Merges each layer into a weight that is mapped to a file, so that the memory can be written out."""
    from peft.tuners.lora import LoraLayer

    for i, layer in enumerate(module for module in adapted.modules() if isinstance(module, LoraLayer)):
        weight = getattr(layer.get_base_layer(), "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.device.type != "cpu" or not weight.numel():
            continue  # stacked experts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer.merge(safe_merge=True)
        merged = layer.get_base_layer().weight
        path = folder / str(i)
        mapped = torch.from_file(str(path), shared=True, size=merged.numel(), dtype=merged.dtype).view(merged.shape)
        path.unlink()  # it lives as long as it is mapped
        merged.data = mapped.copy_(merged.data)


@torch.no_grad()
def _answer(model: Any, tokens: tuple[int, ...] | None = None) -> Answer | None:
    """Returns the answer of a model to a few tokens, or its logits for a given one; None if it takes more than text."""
    base = below_adapter(model)
    names = ordinary_tokens(base)
    prompt = [names[i * 7 % len(names)] for i in range(_NUM_TOKENS)]
    answered = list(tokens or ())
    try:
        with trial(model):
            while tokens is None and len(answered) < _NUM_ANSWERED:
                answered.append(int(_logits(model, prompt + answered)[-1].argmax()))
            return Answer(_logits(model, prompt + answered).float().clone(), tuple(answered))
    except ConfigError:
        return None


def _logits(model: Any, tokens: list[int]) -> torch.Tensor:
    return logits_of(model, torch.tensor([tokens]))


def difference(expected: Answer, found: Answer | None, dtype: torch.dtype) -> str:
    """Returns in which numbers two answers differ by more than the rounding of a dtype; empty if they do not."""
    if found is None:
        return "its forward pass fails"
    largest = expected.logits.abs().max().clamp_min(1e-6)
    error = float((found.logits - expected.logits).abs().max() / largest)
    if not error <= _BOUNDS[dtype]:  # also if it is not a number
        return f"its logits differ by {error:.2g} of the largest, allowed are {_BOUNDS[dtype]:.2g} in {dtype}"
    choices = found.logits[_NUM_TOKENS - 1 : -1]
    for place, (token, row) in enumerate(zip(expected.tokens, choices, strict=True)):
        # Where two tokens are as likely, rounding may decide.
        if float(row.max() - row[token]) > 2 * _BOUNDS[dtype] * float(largest):
            return f"its greedy answer has token {int(row.argmax())} at place {place}, expected {token}"
    return ""
