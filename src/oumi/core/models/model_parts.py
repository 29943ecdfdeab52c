# SPDX-License-Identifier: Apache-2.0
"""The parts of a model by their role, whatever a family calls them."""

from __future__ import annotations

from typing import Any

from torch import nn

from oumi.core.plan.frozen import PARTS

LANGUAGE_MODEL_KEYS = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Names of the weights of a language model in the files of a model for text and images -> its own."""


def modules_of_part(model: Any, part: str) -> list[nn.Module]:
    """Returns the modules of a part of a model, none if the model has no such part."""
    if part == "embeddings":
        return [model.get_input_embeddings()]
    if part == "head":
        return [head] if (head := model.get_output_embeddings()) is not None else []
    modules: list[nn.Module] = []
    within: set[int] = set()
    for path, module in model.named_modules():
        if id(module) not in within and path.rpartition(".")[2] in PARTS.get(part, ()):
            within.update(map(id, module.modules()))
            modules.append(module)
    if not modules and part == "language_model" and model.get_decoder() is not None:
        return [model.get_decoder()]  # of a text model
    return modules
