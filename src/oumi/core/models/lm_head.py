# SPDX-License-Identifier: Apache-2.0
"""The language model head, from hidden states to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from oumi.core.batch import LmHead
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import is_close, logits_of, trial
from oumi.core.models.tied_embedding import TiedTable, may_tie
from oumi.core.models.twin import ordinary_tokens, plain_class

_NUM_TOKENS = 4


class ModelHead:
    """The linear layer that computes a model's logits, with the scale and the softcap that its config names."""

    def __init__(self, inner: Any) -> None:
        base = below_adapter(inner)
        self._module = base.get_output_embeddings()
        self._embedding = base.get_input_embeddings()
        self._tied: TiedTable | None = None
        # Cohere multiplies its logits by a constant, Granite divides them, Gemma caps them.
        settings: Mapping[str, Any] = base.config.get_text_config().to_dict()
        self._softcap = settings.get("final_logit_softcapping")
        self._scale = float(settings.get("logit_scale") or 1 / (settings.get("logits_scaling") or 1))

    def current(self) -> LmHead:
        """Returns the head with its current weights; call it after the forward pass that computed the states."""
        table = None if self._tied is None else self._tied.take()
        return LmHead(self._module.weight if table is None else table, self._module.bias, self._scale, self._softcap)

    def tie(self) -> None:
        """Computes the gradient of a weight shared with the embedding only once, see `tied_embedding.py`."""
        if may_tie(self._embedding, self._module):
            self._tied = TiedTable(self._embedding)


def find_head(inner: Any) -> ModelHead | None:
    """Returns the head of a model, None if it is not a single linear layer; `makes_logits` verifies it."""
    base = below_adapter(inner)
    module = base.get_output_embeddings()
    # A head with an adapter or with quantized weights has another class.
    is_linear = module is not None and plain_class(module) is torch.nn.Linear
    return ModelHead(inner) if is_linear and base.base_model is not base else None


def makes_logits(head: ModelHead, inner: Any) -> bool:
    """Returns True if the head computes the model's logits from its last hidden states."""
    base = below_adapter(inner)
    tokens = torch.tensor([ordinary_tokens(base)[:_NUM_TOKENS]], device=base.device)
    with trial(base):
        logits = logits_of(base, tokens)
        states = base.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        current = head.current()
        # OPT may project the states to the width of its embedding in front of the head.
        return states.shape[-1] == current.weight.shape[1] and is_close(current.logits(states), logits)
