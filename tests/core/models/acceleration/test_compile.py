# SPDX-License-Identifier: Apache-2.0
"""Compiled layers give the same losses, and are compiled once, whatever the length of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.errors import ConfigError
from oumi.core.methods.next_token import next_token_loss
from oumi.core.models.acceleration.compile import compile_layers
from oumi.core.models.acceleration.flat import make_flat
from oumi.core.train import train
from tests.runs import batches, tiny_config, tiny_rows
from tests.tiny import tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "pad_token_id": 0,
}  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recompute",
    [
        {},
        {"enable_gradient_checkpointing": True},
        {"enable_gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"recompute_num_layers": 1}},
    ],
)
def test_compiled_layers_train_as_plain_ones_and_are_not_compiled_again(
    tmp_path: Path, recompute: dict[str, Any]
) -> None:
    curves = []
    for name, compiled in (("plain", {}), ("compiled", {"compile": True, **recompute})):
        torch._dynamo.reset()
        counters.clear()
        train(tiny_config(tmp_path, max_steps=8, output_dir=str(tmp_path / name), **compiled))
        curves.append(losses(tmp_path / name))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    # Before and after attention, and what stands around; twice where a first batch has one document.
    assert 1 <= counters["stats"]["unique_graphs"] <= 8
    assert not counters["recompile_limit"]


DONE: list[int] = []


@torch.library.custom_op("oumi_tests::counted", mutates_args=())
def counted(states: torch.Tensor) -> torch.Tensor:
    """Returns a copy; that it was called is seen from outside, compiled or not."""
    DONE.append(states.shape[-1])
    return states.clone()


counted.register_fake(torch.empty_like)
counted.register_autograd(lambda _context, grad: grad)


@pytest.mark.slow
def test_the_last_product_of_a_layer_is_not_computed_again(tmp_path: Path) -> None:
    torch._dynamo.reset()
    inner = checkpointing(tiny_llama().bfloat16())
    first, last = inner.model.layers[0].mlp.gate_proj, inner.model.layers[0].mlp.down_proj
    first_own = first.forward
    own, model = last.forward, make_flat(inner, None)
    last.forward = lambda states: counted(own(states))
    first.forward = lambda states: counted(first_own(states))
    DONE.clear()
    compile_layers(inner, {"use_reentrant": False})
    next_token_loss(model, batches(tiny_rows(tmp_path), 8)[0]).backward()
    assert sorted(DONE) == [64, 128, 128], "the first product is computed again, the last one is not"


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "gemma2", "8 bits", "adapter", "float32"])
def test_a_last_product_that_is_no_plain_one_is_compiled_with_the_rest(kind: str) -> None:
    if kind in ("mixtral", "gpt_oss", "gemma2"):
        inner = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).bfloat16()
    else:
        inner = tiny_llama().to(torch.float32 if kind == "float32" else torch.bfloat16)
    layers = checkpointing(inner).model.layers
    if kind == "8 bits":
        layers[0].mlp.down_proj.__class__ = type("Float8Linear", (torch.nn.Linear,), {})
    elif kind == "adapter":
        inner = get_peft_model(inner, LoraConfig(target_modules=["down_proj"]))
    compile_layers(inner, {"use_reentrant": False})
    assert not any("forward" in vars(module) for module in layers[0].modules() if module is not layers[0])


def checkpointing(inner: Any) -> Any:
    inner.train().gradient_checkpointing_enable({"use_reentrant": False})
    return inner


def test_a_model_without_known_layers_is_refused() -> None:
    class Bare(torch.nn.Module):
        _no_split_modules = None

        class config:  # noqa: N801  as transformers calls it
            model_type = "bare"

        def get_decoder(self) -> torch.nn.Module:
            return self

    with pytest.raises(ConfigError, match=r"training\.compile: bare does not name its layers"):
        compile_layers(Bare())
