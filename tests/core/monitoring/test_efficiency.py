# SPDX-License-Identifier: Apache-2.0
"""The time of a step: counted operations, and shares that add up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from oumi.core.models.flops import model_flops, visible_pairs
from oumi.core.monitoring.efficiency import WASTE, shares_of
from oumi.core.monitoring.op_times import OpTimes, UpdateTime
from oumi.core.system.peaks import NOMINAL_TFLOPS, measure_page_fault, nominal_flops, peaks_of
from oumi.core.train import train
from tests.runs import tiny_config
from tests.tiny import tiny_llama


@given(
    st.floats(1e-3, 1e3),
    st.dictionaries(st.sampled_from(["useful", *WASTE]), st.floats(0, 1e3), max_size=len(WASTE) + 1),
)
def test_shares_add_up_to_1(wall_s: float, seconds: dict[str, float]) -> None:
    shares = shares_of(wall_s, {**seconds, "useful": min(seconds.get("useful", 0.0), wall_s)})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share >= 0 for share in shares.values())
    assert shares.keys() == {"useful", *WASTE}


def test_parts_that_fit_are_left_as_they_are_and_python_has_the_rest() -> None:
    shares = shares_of(2.0, {"useful": 1.0, "memory": 0.5, "data": 0.1})
    assert (shares["useful"], shares["memory"]) == (0.5, 0.25)
    assert shares["python"] == pytest.approx(0.2)


@pytest.mark.parametrize(("length", "window", "num_pairs"), [(10, None, 50), (10, 20, 50), (10, 4, 32)])
def test_pairs_are_half_of_a_square_within_the_window(length: int, window: int | None, num_pairs: float) -> None:
    assert visible_pairs(length, window) == num_pairs


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "mixtral", "gpt2"])
def test_operations_are_those_that_torch_counts(model_type: str) -> None:
    settings: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "num_local_experts": 4,
        "num_experts_per_tok": 2, "n_embd": 64, "n_layer": 2, "n_head": 4,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    tokens = torch.arange(3, 43)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    work = model_flops(model)
    expected = counter.get_total_flops()
    # Rotations and the choice of experts are products, too.
    assert work.flops([40], 40, full_squares=True) == pytest.approx(expected, rel=0.02)


def test_a_frozen_weight_needs_no_gradient_of_its_own() -> None:
    model = tiny_llama()
    full = model_flops(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    frozen = model_flops(model)
    assert (frozen.token, frozen.term) == (full.token * 2 / 3, full.term * 2 / 3)
    assert frozen.token_forward == full.token_forward


def test_a_model_without_attention_has_work_too() -> None:
    settings: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    work = model_flops(AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **settings)))
    assert work.pairs_forward == ((None, 0.0),)
    assert work.flops([40], 40) > 0


def test_layers_with_heads_of_different_sizes_are_counted_each_by_its_own() -> None:
    settings: dict[str, Any] = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "global_head_dim": 32, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 128,
    }  # fmt: skip
    work = model_flops(AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma4_text", **settings)))
    assert dict(work.pairs_forward) == {8: 4.0 * 4 * 16, None: 4.0 * 4 * 32}


def test_products_are_measured_apart_from_other_kernels() -> None:
    left = torch.randn(256, 256, requires_grad=True)
    with OpTimes() as times:
        (left @ left).relu().sum().backward()
    assert times.products_s > 0
    assert times.others_s > 0


def test_an_update_takes_from_the_gradients_to_its_end() -> None:
    update = UpdateTime("cpu")
    time.sleep(0.1)
    update.begin()
    time.sleep(0.02)
    assert 0.02 <= update.end() < 0.1


def test_watching_a_step_leaves_its_numbers_bitwise_unchanged() -> None:
    def gradients() -> list[torch.Tensor]:
        model = tiny_llama()
        model(input_ids=torch.arange(40)[None], labels=torch.arange(40)[None]).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    with OpTimes():
        watched = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT", "HF"])
def test_every_step_reports_its_share_of_the_peak_and_shares_add_up(tmp_path: Path, trainer: str) -> None:
    train(tiny_config(tmp_path, max_steps=6, trainer_type=trainer))
    steps = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for step in steps:
        shares = {name: value for name, value in step.items() if name.startswith("time_")}
        assert len(shares) == len(WASTE) + 1
        assert sum(shares.values()) == pytest.approx(1.0)
        assert step["fraction_of_peak"] == step["time_useful"] > 0
        assert step["flops_per_second"] > 0
    assert "of this machine's peak" in (tmp_path / "out" / "logs" / "rank_0000.log").read_text()
    assert all(step["time_recompute"] == 0 for step in steps)
    assert steps[-1]["time_memory"] > 0
    assert all((step["time_padding"] > 0) is (step["time_head"] > 0) is (trainer != "OUMI") for step in steps)


def test_gradient_checkpointing_counts_as_recompute(tmp_path: Path) -> None:
    shares = []
    for count in (1, 2):
        settings = {"recompute_num_layers": count}
        out = tmp_path / str(count)
        changes = {"enable_gradient_checkpointing": True, "gradient_checkpointing_kwargs": settings}
        train(tiny_config(tmp_path, max_steps=2, output_dir=str(out), **changes))
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        shares.append(last["time_recompute"] / last["time_useful"])
    assert shares[0] > 0
    assert shares[1] == pytest.approx(2 * shares[0], rel=0.05)


def test_padding_to_a_multiple_counts_as_padding(tmp_path: Path) -> None:
    shares = []
    for name, kwargs in (("as they are", {}), ("wide", {"pad_to_multiple_of": 512})):
        config = tiny_config(tmp_path, max_steps=2, trainer_type="HF", output_dir=str(tmp_path / name))
        config.data.train.collator_kwargs = kwargs
        train(config)
        last = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        shares.append(last["time_padding"] / last["time_useful"])
    assert shares[1] > 2 * shares[0]


def test_peaks_that_cannot_be_kept_are_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert peaks_of("cpu", "some CPU", "float32").flops > 0


def test_peaks_are_measured_once_and_a_broken_file_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path))
    peaks = peaks_of("cpu", "some CPU", "float32")
    assert peaks.flops > 1e9
    (path,) = tmp_path.glob("peaks-*.json")
    assert peaks_of("cpu", "some CPU", "float32") == peaks
    path.write_text(path.read_text()[:20])
    assert peaks_of("cpu", "some CPU", "float32") != peaks
    assert 1e-8 < measure_page_fault() < 1e-3


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A10G", 70), ("NVIDIA GB200", 2500),
     ("AMD Instinct MI300X", 1307), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165.2)],
)  # fmt: skip
def test_a_gpu_is_looked_up_by_its_longest_name(name: str, tflops: float) -> None:
    assert nominal_flops(name) == tflops * 1e12


def test_an_unknown_gpu_has_no_nominal_peak() -> None:
    assert nominal_flops("Some GPU") is None
    assert all(value > 0 for value in NOMINAL_TFLOPS.values())
