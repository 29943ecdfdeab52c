# SPDX-License-Identifier: Apache-2.0
"""`oumi export`: one plain model without an adapter, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oumi.core.errors import ConfigError, did_you_mean

_FORMATS = ("safetensors", "gguf")


def export(
    model_dir: Annotated[Path, typer.Argument(help="Directory of a trained model, an adapter, or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", help="New directory, or new file that ends with .gguf.")],
    to: Annotated[str, typer.Option("--format", help="safetensors or gguf.")] = "safetensors",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; for gguf f32, f16 (the default), bf16 or q8_0."),
    ] = None,
) -> None:
    """Export a trained model, its adapter merged, as a Hugging Face directory or as a GGUF file for llama.cpp."""
    if to not in _FORMATS:
        raise ConfigError(f"--format: got '{to}', must be one of {', '.join(_FORMATS)}{did_you_mean(to, _FORMATS)}")
    from oumi.core.results.exporting import DTYPES, FORMATS, export_gguf, export_safetensors
    from oumi.core.system.filesystem import expanded, storage_errors

    known = DTYPES if to == "safetensors" else tuple(FORMATS)
    if dtype is not None and dtype not in known:
        raise ConfigError(f"--dtype: got '{dtype}', must be one of {', '.join(known)}{did_you_mean(dtype, known)}")
    source, target = expanded(str(model_dir)), expanded(str(output))
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if to == "gguf":
            export_gguf(source, target, dtype or "f16")
        else:
            export_safetensors(source, target, dtype)
    typer.echo(f"{target}: written" + (", and read back with equal logits" if to == "gguf" else ""))
