# SPDX-License-Identifier: Apache-2.0
"""Embeddings of tokens that a model was not trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from oumi.core.configs.peft import ALL_LINEAR
from oumi.core.errors import ConfigError
from oumi.core.hub import hub_errors
from oumi.core.plan.lora import is_target
from oumi.core.system.filesystem import expanded

_FILES = (("adapter_config.json",), ("adapter_model.safetensors", "adapter_model.bin"))
"""Files of an adapter: of each group, any one."""


@torch.no_grad()
def add_tokens(model: Any, tokens: Sequence[int]) -> None:
    """Gives tokens embeddings, and rows of the head, that are the means of those of all other tokens.

    The tables get exactly as many rows as there are tokens. A mean keeps the logits of the other tokens in place
    (nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Raises:
        ConfigError: The model has no weights here, since they are divided over ranks.
    """
    if not tokens:
        return
    if any(weight.is_meta for weight in model.parameters()):
        raise ConfigError(
            "model.tokenizer_kwargs: new tokens are not supported with fsdp; add them in a run without it, and go on "
            "with the model that it saves"
        )
    _grow(model, max(tokens) + 1)
    tables = {id(table): table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table}
    weights = {
        id(w): w for table in tables.values() for w in (table.weight, getattr(table, "bias", None)) if w is not None
    }
    for weight in weights.values():
        is_old = torch.ones(len(weight), dtype=torch.bool)
        is_old[list(tokens)] = False
        weight[list(tokens)] = weight[is_old].float().mean(0).to(weight.dtype)


def settings_for_tokens(settings: Mapping[str, Any], model: Any, tokens: Sequence[int], whole: bool) -> dict[str, Any]:
    """Returns the arguments of an adapter that also trains the embeddings and the rows of the head of some tokens.

    Args:
        settings: Arguments of peft.LoraConfig.
        model: The model without an adapter.
        tokens: The tokens.
        whole: Train all rows, for trainers that multiply by the weight of the head themselves.

    Raises:
        ConfigError: The adapter has an update of low rank for a table, which has no rows of its own for the tokens.
    """
    if not tokens:
        return dict(settings)
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    is_tied = len(tables) == 2 and tables[0].weight is tables[1].weight
    names = [name for name, module in model.named_modules() if any(module is table for table in tables)]
    targets, saved = settings.get("target_modules"), settings.get("modules_to_save") or ()
    if targets and targets != ALL_LINEAR and (adapted := [name for name in names if is_target(targets, name)]):
        raise ConfigError(
            f"peft.lora_target_modules: new tokens need rows of their own in {adapted[0]}, and an adapter on it has "
            "none; leave it out, and their rows are trained, or name it in peft.lora_modules_to_save"
        )
    # Where all rows of a table are trained, those of the other one are, too: PEFT takes no single rows beside them.
    if whole or any(_ends_any(names, name) for name in saved):
        return {**settings, "modules_to_save": [*(name for name in saved if not _ends_any(names, name)), *names]}
    given = settings.get("trainable_token_indices") or []
    rows = sorted({*given, *tokens})
    embedding = next(name for name, module in model.named_modules() if module is tables[0])
    return {**settings, "trainable_token_indices": dict.fromkeys([embedding] if is_tied else names, rows)}


def _ends_any(paths: Sequence[str], name: str) -> bool:
    """Returns True if a name is the end of one of the dotted paths, as PEFT matches them."""
    return any(f".{path}".endswith(f".{name}") for path in paths)


def fit_to_adapter(model: Any, source: str, revision: str | None = None) -> None:
    """Gives a base model as many embeddings as an adapter of it was trained with."""
    from peft import PeftConfig, load_peft_weights

    folder = expanded(source)
    for names in _FILES if folder.is_dir() else ():
        if not any((folder / name).is_file() for name in names):
            raise ConfigError(f"adapter {source}: the directory contains no {names[0]}")
    with hub_errors("adapter", source):
        try:
            config = PeftConfig.from_pretrained(source, revision=revision)
        except KeyError as error:
            raise ConfigError(f"adapter {source}: the installed PEFT knows no kind of adapter {error}") from error
    indices = getattr(config, "trainable_token_indices", None) or []
    num_rows = 1 + max(
        (i for part in (indices.values() if isinstance(indices, dict) else [indices]) for i in part), default=-1
    )
    if getattr(config, "modules_to_save", None):
        tables = {name for name, module in model.named_modules() if module is model.get_input_embeddings()}
        with hub_errors("adapter", source):
            weights = load_peft_weights(source, device="cpu", revision=revision)
        num_rows = max(
            [num_rows, *(len(w) for name, w in weights.items() if any(f".{table}.weight" in name for table in tables))]
        )
    _grow(model, num_rows)


def _grow(model: Any, num_rows: int) -> None:
    """Adds rows to the embedding and the head of a model if they have fewer; their values are arbitrary."""
    if len(model.get_input_embeddings().weight) < num_rows:
        with torch.random.fork_rng():
            model.resize_token_embeddings(num_rows, mean_resizing=False)
