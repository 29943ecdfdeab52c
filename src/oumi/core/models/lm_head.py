# SPDX-License-Identifier: Apache-2.0
"""The last step of a model, from hidden states to logits."""

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
    """The linear layer in front of a model's logits, with the scale and the cap that its config names."""

    def __init__(self, inner: Any) -> None:
        base = below_adapter(inner)
        self._module = base.get_output_embeddings()
        self._embedding = base.get_input_embeddings()
        self._tied: TiedTable | None = None
        # Cohere multiplies logits by a number, Granite divides them, Gemma caps them.
        settings: Mapping[str, Any] = base.config.get_text_config().to_dict()
        self._softcap = settings.get("final_logit_softcapping")
        self._scale = float(settings.get("logit_scale") or 1 / (settings.get("logits_scaling") or 1))

    def current(self) -> LmHead:
        """Returns the head with the weights as they are now, after the forward pass whose states it takes."""
        table = None if self._tied is None else self._tied.take()
        return LmHead(self._module.weight if table is None else table, self._module.bias, self._scale, self._softcap)

    def tie(self) -> None:
        """From here on, makes the gradient of a weight that is the embedding, too, only once."""
        if may_tie(self._embedding, self._module):
            self._tied = TiedTable(self._embedding)


def find_head(inner: Any) -> ModelHead | None:
    """Returns the head of a model, None if there is no single linear layer; `makes_logits` tries it."""
    base = below_adapter(inner)
    module = base.get_output_embeddings()
    # An adapter on the head, or one of fewer bits, is a module of another class.
    is_linear = module is not None and plain_class(module) is torch.nn.Linear
    return ModelHead(inner) if is_linear and base.base_model is not base else None


def makes_logits(head: ModelHead, inner: Any) -> bool:
    """Returns True if the head turns the last hidden states of its model into the model's logits."""
    base = below_adapter(inner)
    tokens = torch.tensor([ordinary_tokens(base)[:_NUM_TOKENS]], device=base.device)
    with trial(base):
        logits = logits_of(base, tokens)
        states = base.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
        current = head.current()
        # OPT may project the states in between, to the width of its embedding.
        return states.shape[-1] == current.weight.shape[1] and is_close(current.logits(states), logits)
