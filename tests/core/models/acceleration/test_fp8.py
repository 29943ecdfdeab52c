# SPDX-License-Identifier: Apache-2.0
"""Products in 8 bits: their rounding, and what stays as it is. On a CPU it is the same rounding, only not fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from oumi.core.errors import ConfigError
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.models.acceleration.fp8 import use_fp8
from oumi.core.models.language_model import LanguageModel
from oumi.core.types.example import Example
from tests.laws.test_cut import relative_error
from tests.runs import batches, tiny_rows
from tests.tiny import tiny_llama

narrow = pytest.mark.narrow
LARGE = {"hidden_size": 1040, "intermediate_size": 4112, "num_hidden_layers": 1}
"""Both sides of a layer beyond what torchao leaves alone."""
BY_ROWS = ["rowwise", "rowwise_with_gw_hp"]
SHARED = {"rowwise": 1e-4, "tensorwise": 0.1}
"""How far the cut of a step moves its gradients, at most, where tokens share a scale."""


def large(recipe: str) -> LanguageModel:
    inner = tiny_llama(**LARGE).train()
    model = make_flat(inner, None)
    use_fp8(inner, recipe)
    return model


def gradients_of_uneven_tokens(model: LanguageModel, rows: list[Example], size: int) -> torch.Tensor:
    """Returns the gradient of a step of whose rows each matters ten times as much as the one before."""
    model.zero_grad()
    for i, batch in enumerate(batches(rows, size)):
        weights = torch.cat(
            [
                torch.full((document.num_targets,), 10.0 ** -(i * size + k))
                for k, document in enumerate(batch.documents())
            ]
        )
        logits, targets = model(batch.to(torch.device("cpu"))).logits(), batch.targets[batch.trained]
        (functional.cross_entropy(logits, targets, reduction="none") * weights).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@narrow
def test_gradients_do_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    rows = tiny_rows(tmp_path)
    model = large("rowwise_with_gw_hp")
    uncut, cut = (gradients_of_uneven_tokens(model, rows, size) for size in (8, 3))
    assert relative_error(cut, uncut) < 1e-6
    exact = gradients_of_uneven_tokens(make_flat(tiny_llama(**LARGE).train(), None), rows, 8)
    assert 1e-3 < relative_error(uncut, exact) < 0.06, "8 bits round, and no more"


@narrow
@pytest.mark.parametrize("recipe", SHARED)
def test_a_scale_that_tokens_share_depends_on_the_cut_as_the_plan_says(tmp_path: Path, recipe: str) -> None:
    rows = tiny_rows(tmp_path)
    model = large(recipe)
    uncut, cut = (gradients_of_uneven_tokens(model, rows, size) for size in (8, 3))
    assert 1e-7 < relative_error(cut, uncut) < SHARED[recipe]


@narrow
@pytest.mark.parametrize("recipe", BY_ROWS)
def test_a_document_does_not_move_another(tmp_path: Path, recipe: str) -> None:
    rows = tiny_rows(tmp_path)
    model = large(recipe).eval()
    with torch.no_grad():
        before, after = (model(batches([first, rows[2]], 2)[0]).logits() for first in rows[:2])
    count = int(rows[2].is_target[1:].sum())
    assert torch.equal(before[-count:], after[-count:])


@narrow
@pytest.mark.parametrize("is_adapted", [False, True])
def test_weights_and_their_names_stay_and_small_layers_are_left_alone(is_adapted: bool) -> None:
    inner: Any = tiny_llama(**LARGE)
    if is_adapted:
        inner = get_peft_model(inner, LoraConfig(r=16, target_modules=["up_proj"]))
    before = dict(inner.named_parameters())
    use_fp8(inner, "rowwise")
    after = dict(inner.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is weight for name, weight in before.items())
    changed = [name for name, module in inner.named_modules() if type(module).__name__ == "Float8Linear"]
    assert sorted(name.split("mlp.")[1] for name in changed) == [
        "gate_proj",
        "up_proj.base_layer" if is_adapted else "up_proj",
    ]


@narrow
def test_a_model_without_large_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of this model is large enough"):
        use_fp8(tiny_llama(), "rowwise")


def test_a_missing_package_is_reported_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"training.fp8_recipe: needs: pip install 'oumi\[narrow\]'"):
        use_fp8(tiny_llama(), "rowwise")
