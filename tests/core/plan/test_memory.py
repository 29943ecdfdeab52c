# SPDX-License-Identifier: Apache-2.0
"""The peak of memory is told before a run starts, and a run that would not fit is refused with what would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oumi.core.configs import PeftParams
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.plan import sections
from oumi.core.plan.fitting import changes_that_fit, memory_of, with_rows, with_what_fits
from oumi.core.plan.lora import LoraPlan
from oumi.core.plan.memory import plan_memory
from oumi.core.plan.parts import Plan
from oumi.core.plan.plan import make_plan
from oumi.core.plan.render import plan_json, plan_text
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.shapes import ModelShape, shape_of
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.system.host import memory_limit
from oumi.core.train import train
from tests.runs import build, tiny_config
from tests.tiny import save_tiny_model, tiny_llama

GB = 10**9
LLAMA = ModelShape("llama", 16, 2048, 32, 8, 64, 8192, 128_256, True)
ROWS = LargestMicroBatch(8 * 512, 512)
MANY = LargestMicroBatch(64 * 512, 512)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Returns the plan of a run of a large model on a large machine."""
    config = tiny_config(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    facts = gather_facts(config)
    return make_plan(config, replace(facts, memory_bytes=1000 * GB, model=replace(facts.model, shape=LLAMA)))


def total(plan: Plan, largest: LargestMicroBatch = ROWS) -> int:
    memory = memory_of(plan, largest)
    assert memory is not None
    return memory.total


def recomputed(plan: Plan, count: int) -> Plan:
    return replace(plan, gradient_checkpointing={"use_reentrant": False, "recompute_num_layers": count})


def auto(plan: Plan, **values: Any) -> Plan:
    training = plan.config.training.model_copy(update=values)
    return replace(plan, config=plan.config.model_copy(update={"training": training}))


def fitted(plan: Plan, available: int) -> Plan:
    assert plan.memory is not None
    return replace(plan, memory=replace(plan.memory, available=available))


ON_H200 = {
    "plain": (35.30, {}, 4),
    "computed again": (11.48, {"gradient_checkpointing": {"use_reentrant": False}}, 4),
    "accumulated": (24.17, {"accumulation": 2}, 2),
    "mixed precision": (49.76, {"dtype": "float32", "autocast": "bfloat16"}, 4),
}
"""GiB that torch had taken at the peak of a 1B Llama with rows of 4,096 tokens, as measured on 2026-11-26."""


@pytest.mark.parametrize("case", ON_H200)
def test_what_a_gpu_was_measured_to_hold_is_reported(plan: Plan, case: str) -> None:
    measured, changes, rows = ON_H200[case]
    fitted_plan = replace(
        plan,
        device="cuda",
        speed=replace(plan.speed, fused_layers=False),
        model=replace(plan.model, dtype=changes.get("dtype", "bfloat16")),
        precision=replace(plan.precision, autocast=changes.get("autocast")),
        steps=replace(plan.steps, accumulation=changes.get("accumulation", 1), micro_batch_rows=rows),
        gradient_checkpointing=changes.get("gradient_checkpointing"),
    )
    memory = memory_of(fitted_plan, LargestMicroBatch(rows * 4096, 4096))
    assert memory is not None
    assert (memory.total - memory.process) / 2**30 == pytest.approx(measured, rel=0.05), memory


def test_more_rows_and_longer_ones_take_more(plan: Plan) -> None:
    sizes = [total(plan, LargestMicroBatch(rows * 512, 512)) for rows in (1, 2, 3, 8, 64)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    eager = replace(plan, model=replace(plan.model, attention="eager"))
    assert total(eager, LargestMicroBatch(4096, 4096)) == total(eager, ROWS) > total(plan), "scores are not kept"
    padded = replace(eager, speed=replace(plan.speed, flat_batches=False))
    assert total(padded, LargestMicroBatch(4096, 4096)) > total(padded, ROWS) > total(eager)


@pytest.mark.parametrize(
    "saves",
    [
        {"lora": LoraPlan({"r": 8, "target_modules": None}, "ADAPTER_ONLY")},
        {"gradient_checkpointing": {}},
    ],
)
def test_what_saves_memory_is_reported_so(plan: Plan, saves: dict[str, Any]) -> None:
    assert total(replace(plan, **saves)) < total(plan)


def test_each_means_of_speed_and_each_optimizer_has_its_memory(plan: Plan) -> None:
    assert total(replace(plan, speed=replace(plan.speed, fused_loss=False))) > total(plan)
    fused = replace(plan, speed=replace(plan.speed, fused_layers=True))
    assert total(replace(plan, speed=replace(plan.speed, fused_layers=False))) > total(fused)
    by_name = [
        total(replace(plan, optimizer=replace(plan.optimizer, name=name))) for name in ("sgd", "adamw_8bit", "adamw")
    ]
    assert by_name == sorted(by_name)
    assert by_name[2] - by_name[0] == 2 * 4 * LLAMA.num_parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_8_bit_and_paged_states_have_sizes_of_their_own(plan: Plan, dtype: str) -> None:
    for device, sizes in (
        ("cpu", {"adamw_8bit": 2.03, "paged_adamw_32bit": 8}),
        ("cuda", {"adamw_8bit": 2.03, "paged_adamw_32bit": 0}),
    ):
        of_dtype = replace(plan, device=device, model=replace(plan.model, dtype=dtype))
        for name, size in sizes.items():
            memory = memory_of(replace(of_dtype, optimizer=replace(plan.optimizer, name=name)), ROWS)
            assert memory is not None
            assert memory.optimizer == pytest.approx(size * LLAMA.num_parameters, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "is_predicted"),
    [({"has_window": True}, False), ({"has_window": True, "has_softcap": True}, True), ({}, True)],
)
def test_the_mask_of_a_window_is_kept_in_padded_batches_alone(
    plan: Plan, shape: dict[str, bool], is_predicted: bool
) -> None:
    flat = replace(plan, shape=replace(LLAMA, **shape))
    padded = replace(flat, speed=replace(plan.speed, flat_batches=False))
    assert plan_memory(flat, GB, largest=ROWS) is not None
    assert (plan_memory(padded, GB, largest=ROWS) is not None) == is_predicted


def test_the_rank_of_an_adapter_is_counted(plan: Plan) -> None:
    small, large = (
        memory_of(replace(plan, lora=LoraPlan({"r": r, "target_modules": ["q_proj"]}, "MERGED")), ROWS) for r in (8, 64)
    )
    assert small is not None
    assert large is not None
    assert large.weights - small.weights == 4 * 56 * 16 * (2048 + 2048)


def test_the_magnitudes_of_dora_are_counted(plan: Plan) -> None:
    plain, dora = (
        memory_of(
            replace(plan, lora=LoraPlan({"r": 8, "target_modules": "all-linear", "use_dora": is_dora}, "MERGED")), ROWS
        )
        for is_dora in (False, True)
    )
    assert plain is not None
    assert dora is not None
    # A number for each output of a module.
    assert dora.weights - plain.weights == 4 * 16 * (3 * 2048 + 2 * 512 + 2 * 8192)
    assert dora.activations > plain.activations


@pytest.mark.parametrize("kind", ["TRL_SFT", "HF"])
def test_other_trainers_keep_other_things(plan: Plan, kind: str) -> None:
    assert plan_memory(replace(plan, trainer=kind), GB) is None


def test_memory_of_what_is_not_known_is_not_known(plan: Plan) -> None:
    for unknown in (
        replace(plan, shape=None),
        replace(plan, model=replace(plan.model, freeze=("model.embed_tokens",))),
        replace(plan, model=replace(plan.model, max_length=None)),
        replace(plan, lora=LoraPlan({"r": 8, "target_modules": None, "modules_to_save": ["lm_head"]}, "MERGED")),
    ):
        assert plan_memory(unknown, GB) is None
    assert "not known before the run" in plan_text(replace(plan, memory=None))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_the_parameters_of_a_shape_are_those_of_the_model(kind: str, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**tiny_llama().config.to_dict(), "tie_word_embeddings": tied, "head_dim": 16}
    config = AutoConfig.for_model(**{**settings, "model_type": kind})
    shape = shape_of(config.to_dict())
    assert shape is not None
    assert shape.num_parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("changes", [{"model_type": "gpt2"}, {"vocab_size": None}])
def test_a_shape_that_is_not_understood_is_none(changes: dict[str, Any]) -> None:
    settings = tiny_llama().config.to_dict()
    assert shape_of(settings) is not None
    assert shape_of({**settings, **changes}) is None


def test_a_plan_states_its_memory_and_where_it_goes(plan: Plan) -> None:
    memory = plan_json(plan)["memory"]
    assert memory["total"] == plan.memory.total  # type: ignore[union-attr]
    line = next(line for line in plan_text(plan).splitlines() if line.startswith("  memory "))
    assert " of 1,000 GB: weights 4.9, optimizer 9.9, " in line
    assert line.split()[1:3] == ["up", "to"]


def test_rows_that_are_no_power_of_two_are_cut_too(plan: Plan) -> None:
    for rows in (3, 6, 9):
        cut = replace(plan, steps=replace(plan.steps, micro_batch_rows=rows))
        largest = LargestMicroBatch(rows * 8192, 8192)
        needed = total(
            replace(cut, steps=replace(cut.steps, micro_batch_rows=1, accumulation=rows)), LargestMicroBatch(8192, 8192)
        )
        short = fitted(cut, int(needed / 0.95) + GB)
        texts = [change.text for change in changes_that_fit(short, largest)]
        assert any(text.startswith("training.per_device_train_batch_size: 1 ") for text in texts), texts


def test_micro_batches_left_to_us_are_the_largest_that_fit_and_a_step_keeps_its_rows(plan: Plan) -> None:
    plan = auto(plan, per_device_train_batch_size="auto")

    def largest_of(cut: Plan) -> LargestMicroBatch:
        return LargestMicroBatch(8192 * cut.steps.micro_batch_rows, 8192)

    def rows(available: int) -> tuple[int, int]:
        fitted_plan = with_what_fits(fitted(plan, available), largest_of)
        assert fitted_plan.memory == memory_of(fitted_plan, largest_of(fitted_plan))
        return fitted_plan.steps.micro_batch_rows, fitted_plan.steps.accumulation

    cuts = {n: replace(plan, steps=replace(plan.steps, micro_batch_rows=n, accumulation=8 // n)) for n in (8, 4, 1)}
    needed = {n: total(cut, largest_of(cut)) for n, cut in cuts.items()}
    assert rows(1000 * GB) == (8, 1)
    assert rows(int(needed[8] / 0.84)) == (8, 1)
    assert rows(int(needed[8] / 0.86)) == (4, 2)
    assert rows(int(needed[4] / 0.84)) == (4, 2)
    assert rows(int(needed[1] / 0.84)) == (1, 8)
    with pytest.raises(ConfigError, match="memory: the run needs"):
        with_rows(fitted(plan, needed[1] // 2), 24, largest_of)
    assert "8 rows (auto) x 1" in plan_text(plan)


def test_layers_that_compute_again_take_less_the_more_they_are(plan: Plan) -> None:
    sizes = [total(recomputed(plan, count), MANY) for count in range(16, 0, -1)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 12, "the last few take the place of one another"
    assert sizes[-1] < total(plan, MANY)
    assert total(recomputed(plan, 17), MANY) == sizes[0] == total(replace(plan, gradient_checkpointing={}), MANY)


def test_as_few_layers_compute_again_as_let_the_run_fit(plan: Plan) -> None:
    settings = {"recompute_num_layers": "auto"}
    plan = auto(plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs=settings)
    first = with_what_fits(fitted(plan, 1000 * GB), lambda _: MANY)
    assert first.gradient_checkpointing is None

    def count(available: int) -> Any:
        fitted_plan = with_what_fits(
            fitted(first, available), lambda _: MANY
        )  # a first choice does not bind a second one
        assert fitted_plan.memory == memory_of(fitted_plan, MANY)
        return fitted_plan.gradient_checkpointing and fitted_plan.gradient_checkpointing["recompute_num_layers"]

    assert count(1000 * GB) is None
    for expected in (1, 2, 9, 12):
        assert count(int(total(recomputed(plan, expected), MANY) / 0.849)) == expected
    least = min(range(1, 17), key=lambda count: total(recomputed(plan, count), MANY))
    assert count(total(recomputed(plan, 16), MANY) // 2) == least
    assert "16 of 16 layers (auto)" in plan_text(recomputed(plan, 16))


@pytest.mark.parametrize("is_tight", [True, False])
@pytest.mark.parametrize("rows", [ROWS, MANY])
def test_the_fewest_layers_are_found_wherever_some_will_do(plan: Plan, is_tight: bool, rows: LargestMicroBatch) -> None:
    settings = {"recompute_num_layers": "auto"}
    plan = auto(plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs=settings)
    assert plan.memory is not None
    plan = replace(plan, memory=replace(plan.memory, is_tight=is_tight))
    needed = {count: total(recomputed(plan, count), rows) for count in range(1, 17)}
    for enough in sorted(needed.values()):
        fitted_plan = with_what_fits(fitted(plan, int(enough / 0.849)), lambda _: rows)
        assert fitted_plan.memory is not None
        assert fitted_plan.memory.total <= enough * 0.85 / 0.849


def test_a_run_that_computes_some_layers_again_is_offered_more(plan: Plan) -> None:
    some = auto(plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs={"recompute_num_layers": 2})
    some = recomputed(some, 2)
    short = fitted(some, int(total(some, MANY) * 0.9))
    (change,) = (change for change in changes_that_fit(short, MANY) if "recompute_num_layers" in change.text)
    count = change.plan.gradient_checkpointing["recompute_num_layers"]  # type: ignore[index]  # it is on
    assert count > 2
    assert change.text == f"training.gradient_checkpointing_kwargs.recompute_num_layers: {count}"
    assert change.slowdown == pytest.approx((1 + count / 48) / (1 + 2 / 48))
    assert not change.memory.is_short


def test_few_layers_are_offered_where_they_are_enough(plan: Plan) -> None:
    short = fitted(plan, int(total(plan, MANY) * 0.93))
    (change,) = (change for change in changes_that_fit(short, MANY) if "enable_gradient_checkpointing" in change.text)
    assert change.plan.gradient_checkpointing == {"use_reentrant": False, "recompute_num_layers": 3}
    assert change.text.endswith("true with training.gradient_checkpointing_kwargs.recompute_num_layers: 3")
    assert change.slowdown == pytest.approx(1 + 3 / 16 / 3)


def test_micro_batches_are_cut_before_layers_compute_again(plan: Plan) -> None:
    plan = auto(
        plan,
        per_device_train_batch_size="auto",
        enable_gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"recompute_num_layers": "auto"},
    )

    def largest_of(cut: Plan) -> LargestMicroBatch:
        return LargestMicroBatch(8192 * cut.steps.micro_batch_rows, 8192)

    single = replace(plan, gradient_checkpointing=None, steps=replace(plan.steps, micro_batch_rows=1, accumulation=8))
    needed = total(single, largest_of(single))
    cut = with_what_fits(fitted(plan, int(needed / 0.84)), largest_of)
    assert (cut.steps.micro_batch_rows, cut.gradient_checkpointing) == (1, None)
    cut = with_what_fits(fitted(plan, int(needed / 0.86)), largest_of)
    assert cut.gradient_checkpointing is not None


def test_what_is_left_to_a_plan_that_knows_no_memory_is_reported(plan: Plan) -> None:
    plan = auto(
        plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs={"recompute_num_layers": "auto"}
    )
    facts = gather_facts(plan.config)
    unknown = make_plan(plan.config, replace(facts, model=replace(facts.model, shape=None)))
    assert unknown.memory is None
    assert unknown.gradient_checkpointing == {"use_reentrant": False}
    key = "training.gradient_checkpointing_kwargs.recompute_num_layers"
    assert f"{key}: all layers, since the memory of this run cannot be predicted" in unknown.notes


def test_a_run_without_memory_is_refused_with_the_cheapest_changes_that_fit(plan: Plan) -> None:
    needed = total(plan)
    with pytest.raises(ConfigError, match=r"needs [\d.]+ GB at its peak") as refused:
        with_rows(fitted(plan, int(needed * 0.93)), 24, lambda _: ROWS)
    lines = str(refused.value).splitlines()
    assert len(lines) == 4
    assert "training.per_device_train_batch_size: 1 with training.gradient_accumulation_steps: 8 (" in lines[1]
    assert "about 1x the time" in lines[1]
    assert "enable_gradient_checkpointing: true with " in lines[2]
    assert "recompute_num_layers: 9 (" in lines[2]
    assert "about 1.19x" in lines[2]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.01])
def test_every_change_that_is_named_fits(plan: Plan, share: float) -> None:
    short = fitted(plan, int(total(plan) * share))
    changes = changes_that_fit(short, ROWS)
    assert len(changes) <= 3
    assert not any(change.memory.is_short for change in changes)
    assert bool(changes) == (share > 0.1)


def test_rows_that_are_read_make_the_bound_exact(plan: Plan) -> None:
    exact = with_rows(plan, 24, lambda _: LargestMicroBatch(100, 30))
    assert plan.memory is not None
    assert exact.memory is not None
    assert (plan.memory.is_bound, exact.memory.is_bound) == (True, False)
    assert exact.memory.total < plan.memory.total
    assert with_rows(plan, None, lambda _: None).memory == plan.memory  # a stream: only the bound is known


def test_a_run_is_not_refused_for_rows_that_may_be_short(plan: Plan) -> None:
    assert plan.memory is not None
    bound = fitted(plan, plan.memory.total)
    assert bound.memory is not None
    assert bound.memory.is_short
    assert with_rows(bound, 24, lambda _: LargestMicroBatch(100, 30)).memory is not None
    assert with_rows(bound, None, lambda _: None) is not None


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, "as long as they may be"), (0.1, "will be refused before its weights")]
)
def test_a_plan_notes_that_memory_may_be_short(tmp_path: Path, plan: Plan, share: float, expected: str) -> None:
    assert plan.memory is not None
    config = plan.config
    facts = gather_facts(config)
    facts = replace(facts, memory_bytes=int(plan.memory.total * share), model=replace(facts.model, shape=LLAMA))
    assert [expected in note for note in make_plan(config, facts).notes if note.startswith("memory")] == [True]


@pytest.mark.parametrize(
    ("share", "settings", "expected"),
    [
        (10.0, {}, "at most 0 of 16 layers are recomputed, and a step takes about 0.75 of the time"),
        (1.3, {}, "at most {} of 16 layers are recomputed"),
        (1.0, {}, ""),
        (1.1, {}, ""),
        (10.0, {"recompute_num_layers": 16}, ""),
        (10.0, {"recompute_num_layers": "auto"}, ""),
    ],
)
def test_a_plan_notes_that_layers_are_computed_again_for_no_need(
    plan: Plan, share: float, settings: dict[str, Any], expected: str
) -> None:
    config = auto(plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs=settings).config
    facts = gather_facts(config)
    facts = replace(facts, memory_bytes=1000 * GB, model=replace(facts.model, shape=LLAMA))
    memory = make_plan(config, facts).memory
    assert memory is not None
    facts = replace(facts, memory_bytes=int(memory.total * share))
    notes = make_plan(config, facts).notes
    left = auto(
        plan, enable_gradient_checkpointing=True, gradient_checkpointing_kwargs={"recompute_num_layers": "auto"}
    )
    chosen = make_plan(left.config, facts).gradient_checkpointing or {"recompute_num_layers": 0}
    expected = expected.format(chosen["recompute_num_layers"])
    assert [expected in note for note in notes if note.startswith("memory has room")] == ([True] if expected else [])


def test_a_model_that_never_fits_is_refused_before_it_is_made(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config.model.load_pretrained_weights = False
    config.model.model_kwargs = {"num_hidden_layers": 100_000_000}
    with pytest.raises(ConfigError, match="the run needs"):
        train(config)


@pytest.mark.parametrize(
    ("peft", "copies"),
    [(None, True), ({}, False), ({"lora_bias": "all"}, True), ({"lora_init_weights": "pissa"}, True)],
)
def test_a_copy_of_the_reference_is_counted(plan: Plan, peft: dict[str, Any] | None, copies: bool) -> None:
    config = plan.config.model_copy(deep=True)
    config.training.method, config.training.use_peft = "dpo", peft is not None
    config.peft = PeftParams(lora_target_modules=["q_proj"], **(peft or {}))
    method = sections.plan_method(config, plan.model, plan.steps)
    assert method.copies_reference == copies
    weights = [memory_of(replace(plan, method=candidate), MANY).weights  # type: ignore[union-attr]
               for candidate in (replace(method, copies_reference=False), method)]  # fmt: skip
    assert weights[1] == weights[0] * (2 if copies else 1)


def test_the_largest_micro_batch_is_that_of_the_order(tmp_path: Path) -> None:
    trainer = build(tiny_config(tmp_path), _native())
    run = trainer.run
    loader = run.loader.from_step(0)
    sizes = [batch.num_tokens for _ in range(run.plan.num_steps) for batch in next(loader)]
    longest = trainer._data.largest(run.plan)
    assert longest is not None
    assert longest.tokens == max(sizes)
    loader.close()  # type: ignore[attr-defined]


def _native() -> Any:
    from oumi.core.trainers.native import NativeTrainer

    return NativeTrainer


def test_the_limit_of_a_container_is_read(tmp_path: Path) -> None:
    path = tmp_path / "memory.max"
    assert memory_limit(path) is None
    path.write_text("max\n")
    assert memory_limit(path) is None
    path.write_text("4000000000\n")
    assert memory_limit(path) == 4_000_000_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read on Linux")
@pytest.mark.parametrize("lora", [False, True])
def test_the_prediction_is_what_a_process_takes(tmp_path: Path, lora: bool) -> None:
    save_tiny_model(tmp_path / "model", hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    config = tiny_config(
        tmp_path, 400, per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=2, use_peft=lora
    )
    config.data.train.pack = True
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(include={"model", "data", "training"}, exclude_unset=True))
    run_train(path)
    memory = json.loads((tmp_path / "out" / "plan.json").read_text())["memory"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert not memory["is_bound"]
    assert memory["activations"] > 200 << 20
    assert memory["total"] == pytest.approx(max(record["peak_memory_bytes"] for record in lines), rel=0.15)


def run_train(path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-m", "oumi", "train", "-c", str(path)], env=environment, check=True, capture_output=True
    )


def test_parts_of_memory_add_up() -> None:
    memory = MemoryPlan(1, 2, 3, 4, 5, 6, 22, False, False)
    assert memory.total == 21
    assert memory.is_short  # a share is left to the system
