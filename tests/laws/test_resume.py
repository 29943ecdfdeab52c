# SPDX-License-Identifier: Apache-2.0
"""Law 3: a run that was killed and started again is bitwise the run that was not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oumi.core.checkpoint.identity import Identity, read_identity, write_identity
from oumi.core.data.tokenize.chat_template import bundled_template
from oumi.core.errors import ConfigError, DataError, OutputError, StorageError
from oumi.core.plan.trajectory import differences, trajectory
from oumi.core.train import train
from oumi.core.trainers.native import NativeTrainer
from tests.fork_server import run_python
from tests.runs import build, losses, tiny_config, weights

_SAVING = {"save_steps": 3, "save_total_limit": 2, "try_resume_from_last_checkpoint": True}


@pytest.mark.parametrize(
    ("num_kills", "num_epochs", "last_moment_s"), [(3, 15, 1.2), pytest.param(10, 40, 2.5, marks=pytest.mark.slow)]
)
def test_kills_at_random_moments_leave_the_run_bitwise_as_it_was(
    tmp_path: Path, num_kills: int, num_epochs: int, last_moment_s: float
) -> None:
    shape = {**_SAVING, "num_train_epochs": num_epochs}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    killed = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "killed"))
    killed.to_yaml(tmp_path / "killed.yaml")
    driver = Path(__file__).with_name("kill_driver.py")
    result = run_python(str(driver), str(tmp_path / "killed.yaml"), "7", str(num_kills), str(last_moment_s))
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) >= num_kills // 3, "many attempts are killed while they train"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".tmp-*"))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adafactor"},
        {"optimizer": "sgd", "sgd_momentum": 0.9, "lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"use_peft": True},
        {"seed": 7, "enable_gradient_checkpointing": True},
        {"use_deterministic": True},
        *(
            pytest.param({"optimizer": name}, marks=pytest.mark.narrow)
            for name in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
        ),
        *(pytest.param({"use_peft": True, "q_lora_bits": bits}, marks=pytest.mark.narrow) for bits in (4, 8)),
    ],
)
def test_a_run_resumed_across_an_epoch_is_bitwise_the_uninterrupted_run(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    shape = {**training, "save_steps": 4, "lr_scheduler_type": training.get("lr_scheduler_type", "constant")}
    bits = shape.pop("q_lora_bits", None)
    uninterrupted = tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole"))
    if bits:
        uninterrupted.peft.q_lora, uninterrupted.peft.q_lora_bits = True, bits
    uninterrupted.model.model_kwargs = {"attention_dropout": 0.1}  # so that the random generators matter
    train(uninterrupted)
    again = uninterrupted.model_copy(deep=True)
    again.training.output_dir = str(tmp_path / "again")
    again.training.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    train(again)
    name = "adapter_model.safetensors" if training.get("use_peft") else "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[4:]


def run_id_of(output_dir: Path) -> str:
    identity = read_identity(output_dir)
    assert identity is not None
    return identity.run_id


def test_a_finished_run_is_reported_complete_and_left_untouched(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **_SAVING)
    first = train(config)
    before = contents(tmp_path / "out")
    second = train(config)
    assert (second.steps, second.metrics) == (first.steps, first.metrics)
    assert contents(tmp_path / "out") == before


def test_a_finished_run_whose_model_was_deleted_is_not_complete(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **_SAVING)
    train(config)
    model = tmp_path / "out" / "model.safetensors"
    before = model.read_bytes()
    model.unlink()
    train(config)
    assert model.read_bytes() == before


@pytest.mark.sample(2)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
@pytest.mark.parametrize("saving", [{}, {"save_steps": 3}])
def test_other_rows_do_not_count_as_complete(tmp_path: Path, trainer: str, saving: dict[str, Any]) -> None:
    shape = {"trainer_type": trainer, "try_resume_from_last_checkpoint": True, **saving}
    train(tiny_config(tmp_path, **shape))
    before, run_id = weights(tmp_path / "out"), run_id_of(tmp_path / "out")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chats.read_text().replace("Quite sure", "Quite pure"))
    if saving:
        with pytest.raises(DataError, match="trained on other rows"):
            train(tiny_config(tmp_path, **shape))
    else:
        train(tiny_config(tmp_path, **shape))
        after = weights(tmp_path / "out")
        assert any(not torch.equal(after[name], before[name]) for name in before)
        assert run_id_of(tmp_path / "out") != run_id


def test_a_complete_run_keeps_its_id_only_if_it_is_repeated(tmp_path: Path) -> None:
    shape = {"max_steps": 1, "try_resume_from_last_checkpoint": True}
    ids = []
    for learning_rate in (1e-3, 1e-3, 1e-2):
        train(tiny_config(tmp_path, **shape, learning_rate=learning_rate))
        ids.append(run_id_of(tmp_path / "out"))
        (tmp_path / "out" / "model.safetensors").unlink()
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("use_peft", [False, True])
def test_other_weights_of_the_same_name_are_another_run(tmp_path: Path, use_peft: bool) -> None:
    train(tiny_config(tmp_path, **_SAVING, use_peft=use_peft))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"other settings.*\n  model\.digest: "):
        train(tiny_config(tmp_path, **_SAVING, use_peft=use_peft))


def test_a_finished_run_is_taken_again_from_the_checkpoint_that_is_named(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, save_steps=4))
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    train(tiny_config(tmp_path, save_steps=4, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")))
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns > before
    assert len(losses(tmp_path / "out")) == 12


def test_a_template_that_states_the_date_states_that_of_the_first_day(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **_SAVING)
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}\n" + bundled_template("chat_ml"))
    config.model.chat_template = str(template)
    train(config)
    newest = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(newest)
    first = weights(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    train(config)
    again = weights(tmp_path / "out")
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_a_new_run_does_not_touch_the_checkpoints_of_another(tmp_path: Path, trainer: str) -> None:
    shape = {"trainer_type": trainer, "save_steps": 3}
    train(tiny_config(tmp_path, **shape))
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match="try_resume_from_last_checkpoint: true, name another"):
        train(tiny_config(tmp_path, **shape))
    write_identity(tmp_path / "out", Identity("another", "2026-01-01T00:00:00+00:00"))
    with pytest.raises(OutputError, match="is of another run"):
        train(tiny_config(tmp_path, **shape, try_resume_from_last_checkpoint=True))
    after = contents(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(after[name] == content for name, content in before.items() if name != "run.json")


@pytest.mark.sample(1)
@pytest.mark.parametrize("trainer", ["OUMI", "TRL_SFT"])
def test_a_run_that_went_on_from_a_named_checkpoint_goes_on_from_its_own_later_one(
    tmp_path: Path, trainer: str
) -> None:
    shape = {"trainer_type": trainer, "save_steps": 3, "num_train_epochs": 2}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "first")))
    shape |= {
        "resume_from_checkpoint": str(tmp_path / "first" / "checkpoint-3"),
        "try_resume_from_last_checkpoint": True,
    }
    train(tiny_config(tmp_path, **shape))
    (tmp_path / "out" / "model.safetensors").unlink()
    written = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    train(tiny_config(tmp_path, **shape))  # from checkpoint-12, the last: no step is left to take again
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == written
    assert weights(tmp_path / "out").keys() == weights(tmp_path / "first").keys()


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_named_checkpoint_must_be_whole_and_of_this_run(tmp_path: Path, trainer: str) -> None:
    shape = {"trainer_type": trainer, "save_steps": 3}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "first")))
    checkpoint = tmp_path / "first" / "checkpoint-3"
    again = {**shape, "resume_from_checkpoint": str(checkpoint)}
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.002"):
        train(tiny_config(tmp_path, **{**again, "learning_rate": 2e-3}))
    (checkpoint / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError, match=r"model\.safetensors: expected \d+ bytes, got 3"):
        train(tiny_config(tmp_path, **again))
    (checkpoint / "MANIFEST.json").unlink()
    with pytest.raises(StorageError, match="incomplete, or not written by Oumi"):
        train(tiny_config(tmp_path, **again))
    with pytest.raises(ConfigError, match="resume_from_checkpoint: no directory"):
        train(tiny_config(tmp_path, **{**again, "resume_from_checkpoint": str(tmp_path / "nowhere")}))


def test_another_learning_rate_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, **_SAVING))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.002"):
        train(tiny_config(tmp_path, **{**_SAVING, "learning_rate": 2e-3}))


def test_a_value_that_an_older_version_did_not_know_is_that_of_nothing_asked(tmp_path: Path) -> None:
    now = trajectory(build(tiny_config(tmp_path), NativeTrainer).run.plan)
    old = {name: value for name, value in now.items() if name != "precision.fp8"}
    assert differences(old, now) == differences(now, old) == []
    assert differences(old, {**now, "precision.fp8": '"rowwise"'}) == ['precision.fp8: not set -> "rowwise"']


def test_other_logging_goes_on(tmp_path: Path) -> None:
    train(tiny_config(tmp_path, **{**_SAVING, "max_steps": 7}))
    (tmp_path / "out" / "model.safetensors").unlink()
    other = {**_SAVING, "max_steps": 7, "logging_steps": 1, "num_train_epochs": 9}  # what max_steps overrules
    assert train(tiny_config(tmp_path, **other)).steps == 7


@pytest.mark.parametrize(
    "harm", ["flip", "no manifest", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("cut", "missing"))]
)
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    shape = {**_SAVING, "num_train_epochs": 2}
    train(tiny_config(tmp_path, **shape, output_dir=str(tmp_path / "whole")))
    config = tiny_config(tmp_path, **shape)
    train(config)
    out = tmp_path / "out"
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    harm_checkpoint(newest, harm)
    (out / "model.safetensors").unlink()
    train(config)
    assert list(out.glob(f"broken-{newest.name}-*"))
    assert_same_run(out, tmp_path / "whole")


def contents(directory: Path) -> dict[str, bytes]:
    """Returns every file of a run but its log and its lock."""
    files = (path for path in directory.rglob("*") if path.is_file())
    named = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if name != ".lock" and not name.startswith("logs/")}


def harm_checkpoint(checkpoint: Path, harm: str) -> None:
    path = checkpoint / ("MANIFEST.json" if harm == "no manifest" else "state/optimizer.safetensors")
    content = bytearray(path.read_bytes())
    if harm in ("missing", "no manifest"):
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def assert_same_run(actual: Path, expected: Path) -> None:
    assert losses(actual) == losses(expected)
    ours, theirs = weights(actual), weights(expected)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
