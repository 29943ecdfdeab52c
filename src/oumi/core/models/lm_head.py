# SPDX-License-Identifier: Apache-2.0
"""The last step of a model, from hidden states to logits: found, and tried on the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from oumi.core.batch import LmHead
from oumi.core.models.adapters import below_adapter
from oumi.core.models.equivalence import evaluating, is_close, logits_of
from oumi.core.models.tied_embedding import TiedTable, may_tie

_TOKENS = 4


class LmHeadFinder:
    """Gives the head of a model with its weights as they are now; None if the model has more than a head there."""

    def __init__(self, inner: Any) -> None:
        base = below_adapter(inner)
        module = base.get_output_embeddings()
        self._module = module if type(module) is torch.nn.Linear else None
        facts: Mapping[str, Any] = base.config.get_text_config().to_dict()
        self._embedding = base.get_input_embeddings()
        self._tied: TiedTable | None = None
        self._softcap = facts.get("final_logit_softcapping")
        self._scale = float(facts.get("logit_scale") or 1 / (facts.get("logits_scaling") or 1))
        if self._module is not None and not self._is_all(base):
            self._module = None

    def find(self) -> LmHead | None:
        """Returns the head with the weights as they are now, after the forward pass whose states it takes."""
        if self._module is None:
            return None
        table = None if self._tied is None else self._tied.take()
        weight = self._module.weight if table is None else table
        return LmHead(weight, self._module.bias, self._scale, self._softcap)

    @property
    def has_head(self) -> bool:
        """Returns True if the model has one."""
        return self._module is not None

    def tie(self) -> None:
        """Lets the gradient of a table that embeds tokens, too, be made once from here on."""
        if self._module is not None and may_tie(self._embedding, self._module):
            self._tied = TiedTable(self._embedding)

    def _is_all(self, base: Any) -> bool:
        """Returns True if the head turns the model's last hidden states into its logits."""
        if base.base_model is base:
            return False
        tokens = torch.arange(3, 3 + _TOKENS, device=self._module.weight.device)[None] % len(self._module.weight)
        with evaluating(base):
            logits = logits_of(base, tokens)
            states = base.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
            head = self.find()
            assert head is not None, "there is a module"
            return states.shape[-1] == head.weight.shape[1] and is_close(head.logits(states), logits)
