# SPDX-License-Identifier: Apache-2.0
"""Exports a trained model for others: one plain model without an adapter, or a GGUF file."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from oumi.core.checkpoint.store import UNFINISHED, apply_umask
from oumi.core.errors import ConfigError, OutputError
from oumi.core.inspect import gather_facts
from oumi.core.models.build import build_model
from oumi.core.models.gguf_file import FORMATS, write_gguf
from oumi.core.models.saving import ModelWriter
from oumi.core.plan.plan import make_plan
from oumi.core.results.chat_model import check_model_dir
from oumi.core.results.held_out import held_out_config
from oumi.core.results.merge import merge, save_preprocessor

DTYPES = ("float32", "bfloat16", "float16")


def export_safetensors(source: Path, target: Path, dtype: str | None = None) -> None:
    """Writes the model of a directory, with its adapter merged and proven, as a directory of its own.

    Args:
        source: A trained model, an adapter or a checkpoint.
        target: A new directory.
        dtype: One of `DTYPES`; None takes that of the files of the model, or of the base of an adapter.

    Raises:
        ConfigError: There is no model in `source`.
        OutputError: `target` exists.
        ExportError: The merged model does not compute what the adapter does on its base.
    """
    check_model_dir(source)
    if target.exists():
        raise OutputError(f"{target}: exists already; name a new directory")
    unfinished = target.parent / f"{UNFINISHED}{target.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(source, unfinished, dtype)
        apply_umask(unfinished)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def export_gguf(source: Path, target: Path, kind: str) -> None:
    """Writes the model of a directory, with its adapter merged, as a GGUF file that is read back and compared.

    Args:
        source: A trained model, an adapter or a checkpoint.
        target: A new file, by the suffix `.gguf`.
        kind: One of `FORMATS` of `core/models/gguf_file.py`.

    Raises:
        ConfigError: There is no model in `source`, or it cannot be written so.
        OutputError: `target` exists.
        StorageError: What is read of the file is not the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_dir(source)
    if target.suffix != ".gguf":
        raise ConfigError(f"--output: {target} must end with .gguf")
    if target.exists():
        raise OutputError(f"{target}: exists already; name a new file")
    merged = target.parent / f"{UNFINISHED}{target.stem}-merged"
    unfinished = merged / target.name
    shutil.rmtree(merged, ignore_errors=True)
    try:
        _write(source, merged, None)
        model = AutoModelForCausalLM.from_pretrained(str(merged), dtype=torch.float32)
        write_gguf(model, AutoTokenizer.from_pretrained(str(merged)), unfinished, kind)
        unfinished.rename(target)
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _write(source: Path, directory: Path, dtype: str | None) -> None:
    """Writes a model without adapter, with its tokenizer and processor, into a new directory."""
    if not (source / "adapter_config.json").is_file():
        _write_plain(source, directory, dtype)
        return
    with TemporaryDirectory(dir=directory.parent, prefix=UNFINISHED) as folder:
        merged = Path(folder) / "merged"
        merge(str(source), merged)
        if dtype is None:
            merged.rename(directory)
        else:
            _write_plain(merged, directory, dtype)


def _write_plain(source: Path, directory: Path, dtype: str | None) -> None:
    config = held_out_config(str(source), source)
    facts = gather_facts(config, counts_rows=False)
    plan = make_plan(config, facts)
    model: Any = build_model(plan, torch.device("cpu"))
    writer = ModelWriter(model, plan.model)
    directory.mkdir(parents=True)
    kept = dtype or facts.model.stored_dtype
    if kept is not None:
        model = model.to(getattr(torch, kept))
    writer.write(directory)
    save_preprocessor(str(source), str(source), directory, facts.model.sees_images)


__all__ = ["DTYPES", "FORMATS", "export_gguf", "export_safetensors"]
