# SPDX-License-Identifier: Apache-2.0
"""The shipped quickstart, unchanged, with the real clients of the Hub; and every way it can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from peft import LoraConfig, get_peft_model

from tests.end_to_end.conftest import HOME
from tests.fork_server import run_python
from tests.hub_server import DATASET, MODEL
from tests.runs import tiny_config
from tests.tiny import save_tiny_model, tiny_llama

pytestmark = pytest.mark.xdist_group("hub")

RECIPE = "configs/recipes/smollm/sft/135m/quickstart_train.yaml"
needs_train = pytest.mark.skipif(find_spec("oumi.cli.main") is None, reason="oumi train is not built yet")
Result = subprocess.CompletedProcess[str]


@pytest.fixture
def train(python) -> Callable[..., Result]:
    return lambda *overrides: python("-m", "oumi", "train", "-c", RECIPE, *overrides)


def test_the_real_clients_take_our_hub_for_the_hub(python, hub):
    result = python(
        "-c",
        f"""
import datasets, transformers
model = transformers.AutoModelForCausalLM.from_pretrained("{MODEL}", use_safetensors=True)
tokenizer = transformers.AutoTokenizer.from_pretrained("{MODEL}")
rows = datasets.load_dataset("{DATASET}", split="train[:1000]")
streamed = next(iter(datasets.load_dataset("{DATASET}", split="train", streaming=True)))
assert model.config.vocab_size == len(tokenizer) and tokenizer.chat_template
assert len(rows) == 1000 and streamed == rows[0], streamed
""",
    )
    assert result.returncode == 0, result.stderr
    assert any("cursor=" in request for request in hub.requests), "the tree was read page by page"


@needs_train
def test_the_quickstart_trains_unchanged_and_plain_transformers_loads_the_result(train, python):
    result = train()
    assert result.returncode == 0, result.stdout + result.stderr
    output = "output/smollm135m.sft.quickstart"
    loaded = python(
        "-c",
        f"""
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained("{output}")
tokenizer = transformers.AutoTokenizer.from_pretrained("{output}")
start = transformers.AutoModelForCausalLM.from_pretrained("{MODEL}")
chat = [{{"role": "user", "content": "Add 1 and 2."}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
ids = torch.tensor([ids if isinstance(ids, list) else ids["input_ids"]])
assert torch.isfinite(model(ids).logits).all()
assert not torch.equal(model(ids).logits, start(ids).logits), "nothing was learned"
model.generate(ids, max_new_tokens=4)
""",
    )
    assert loaded.returncode == 0, loaded.stderr


def test_an_adapter_of_the_hub_brings_the_tables_of_its_new_tokens(hub, python, tmp_path):
    model = tiny_llama()
    model.resize_token_embeddings(262)
    whole = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(model, whole).save_pretrained(hub.folder("models", "someone/adapter"))
    result = python(
        "-c",
        f"""
from transformers import AutoModelForCausalLM
from oumi.core.models.adapters import load_adapter
model = AutoModelForCausalLM.from_pretrained("{save_tiny_model(tmp_path / "model")}")
adapted = load_adapter(model, "someone/adapter", is_trained=False)
assert len(adapted.get_input_embeddings().weight) == 262
""",
    )
    assert result.returncode == 0, result.stderr


@needs_train
def test_a_run_writes_the_files_that_describe_it(train, tmp_path):
    assert train("--training.output_dir", "out").returncode == 0
    output = tmp_path / "work" / "out"
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "loss" in step] == list(range(1, 11))
    assert (output / "config.yaml").read_text().startswith("# yaml-language-server")
    for name in ("plan.json", "environment.json", "data_report.json", "checkpoint-10/MANIFEST.json"):
        assert json.loads((output / name).read_text()), name


@needs_train
def test_after_a_run_the_hub_is_no_longer_needed(train, hub, tmp_path):
    assert train().returncode == 0
    hub.requests.clear()
    offline = ("--training.output_dir", str(tmp_path / "again"))
    result = run_python("-m", "oumi", "train", "-c", RECIPE, *offline, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert hub.requests == []


@needs_train
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("unauthorized", ["hf auth login"]),
        ("gated", [f"/{MODEL},", "hf auth login"]),
        ("missing", ["spell"]),
        pytest.param("broken", ["again"], marks=pytest.mark.slow),  # the client tries for half a minute
        pytest.param("slow", ["HF_HUB_OFFLINE"], marks=pytest.mark.slow),
    ],
)
def test_a_hub_that_refuses_the_model_is_reported_with_advice(train, hub, mode, words):
    hub.mode = mode
    assert_fails_with(train(), [MODEL, *words])


@needs_train
@pytest.mark.parametrize("mode", ["unauthorized", "gated", "missing"])
def test_a_hub_that_refuses_the_data_set_is_reported_with_its_name(train, hub, mode):
    assert train("--training.max_steps", "1").returncode == 0
    hub.refused_repo = DATASET
    hub.mode = mode
    shutil.rmtree(HOME / "datasets")
    assert_fails_with(train("--training.output_dir", "again"), [DATASET])


@needs_train
def test_a_hub_out_of_reach_is_reported_with_advice(train, hub):
    with hub.out_of_reach():
        assert_fails_with(train(), [MODEL, hub.url, "HF_HUB_OFFLINE"])


@needs_train
def test_offline_without_a_copy_is_reported(tmp_path):
    shutil.rmtree(HOME, ignore_errors=True)
    assert_fails_with(run_python("-m", "oumi", "train", "-c", RECIPE, folder=tmp_path), [MODEL, "HF_HUB_OFFLINE"])


@needs_train
def test_a_disk_too_small_for_the_download_is_reported(python):
    # A limit on the size of files stands for a full disk, which only root could make; the weights have 249,552 bytes.
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "from oumi.cli.main import run; run()"
    )
    result = python("-c", limited, "train", "-c", RECIPE)
    assert result.returncode == 74, result.stdout + result.stderr
    assert_fails_with(result, [MODEL])


@needs_train
def test_a_disk_that_fills_while_training_is_reported(train, tmp_path):
    output = tmp_path / "work" / "out"
    output.mkdir(parents=True)
    (output / "metrics.tmp").symlink_to("/dev/full")
    result = train("--training.output_dir", "out")
    assert result.returncode == 74, result.stdout + result.stderr
    assert_fails_with(result, ["metrics.jsonl", "No space left"])


def test_no_usage_is_reported_to_the_hub(python, hub, tmp_path):
    tiny_config(tmp_path, trainer_type="TRL_SFT", max_steps=1).to_yaml(tmp_path / "run.yaml")
    # The report leaves in a thread of its own, which the end of the process would cut.
    driver = "import sys, time\nfrom oumi.cli.main import run\ntry:\n    run()\nfinally:\n    time.sleep(1)"
    result = python("-c", driver, "train", "-c", str(tmp_path / "run.yaml"))
    assert result.returncode == 0, result.stderr
    assert not [request for request in hub.requests if "telemetry" in request]


def assert_fails_with(result: Result, words: list[str]) -> None:
    """Asserts that a run failed as a problem of the user: in a few lines, without a traceback."""
    assert result.returncode in (2, 65, 74), result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr, result.stderr
