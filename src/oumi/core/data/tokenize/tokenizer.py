# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from oumi.core.errors import ConfigError
from oumi.core.hub import hub_errors, remote_code_refused
from oumi.core.plan.custom import saved_class
from oumi.core.plan.parts import ModelPlan
from oumi.core.recipes import resolve_asset
from oumi.core.system.filesystem import expanded

_RESERVED_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]")
"""Tokens that vocabularies reserve for padding without declaring a pad token."""
_CONFIG_FILE = "tokenizer_config.json"
_TRAINING_SETTINGS = ("model_max_length", "pad_token", "padding_side", "truncation_side")
"""Settings of a tokenizer that a run changes for its own rows and batches."""
_LOADING_ARGUMENTS = ("is_local", "local_files_only")
"""Arguments of `from_pretrained` that transformers saves with the settings."""


def load_tokenizer(plan: ModelPlan) -> Any:
    """Returns the tokenizer of the plan, with a pad token and the plan's length; its chat template is unchanged.

    Raises:
        ConfigError: There is no such tokenizer, or its vocabulary does not have the pad token.
    """
    name = str(resolve_asset(plan.tokenizer_name))
    # transformers would return an empty tokenizer for a folder without one.
    if (folder := expanded(name)).is_dir() and not [*folder.glob("*token*"), *folder.glob("vocab*")]:
        raise ConfigError(
            f"model.tokenizer_name: {folder} contains no tokenizer; name the one that the model was trained with"
        )
    # It would read the config beside it, which is no config of transformers.
    options = {} if saved_class(plan.tokenizer_name) is None else {"config": PretrainedConfig()}
    with hub_errors("tokenizer", plan.tokenizer_name), remote_code_refused(plan.tokenizer_name):
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=plan.tokenizer_revision,
            trust_remote_code=plan.trust_remote_code,
            **{**options, **plan.tokenizer_kwargs},
        )
    if plan.pad_token is not None:
        if tokenizer.convert_tokens_to_ids(plan.pad_token) in (None, tokenizer.unk_token_id):
            raise ConfigError(
                f"model.tokenizer_pad_token: the vocabulary of {plan.tokenizer_name} has no '{plan.pad_token}', "
                "so it would be a new token; to add it, set model.tokenizer_kwargs: {pad_token: ...}"
            )
        tokenizer.pad_token = tokenizer.init_kwargs["pad_token"] = plan.pad_token
    elif tokenizer.pad_token is None:
        # Without such a token, the end token will do: padding is masked, and never trained.
        vocabulary = tokenizer.get_vocab()
        reserved = (token for token in _RESERVED_PADS if token in vocabulary)
        tokenizer.pad_token = next(reserved, tokenizer.eos_token)
    if plan.max_length is not None:
        tokenizer.model_max_length = plan.max_length
    return tokenizer


def added_tokens(plan: ModelPlan, tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids of the tokens that the plan's arguments of the tokenizer add to its vocabulary."""
    if not plan.tokenizer_kwargs:
        return ()
    published = load_tokenizer(replace(plan, tokenizer_kwargs={}, pad_token=None)).get_vocab()
    return tuple(sorted(i for token, i in tokenizer.get_vocab().items() if token not in published))


def restore_settings(tokenizer: Any, directory: Path) -> None:
    """Gives the files of a saved tokenizer the settings that its source, or the config of the run, has for them."""
    path = directory / _CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in (*_TRAINING_SETTINGS, *_LOADING_ARGUMENTS):
        settings.pop(name, None)
        if name in _TRAINING_SETTINGS and (value := tokenizer.init_kwargs.get(name)) is not None:
            settings[name] = value if isinstance(value, int) else str(value)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
