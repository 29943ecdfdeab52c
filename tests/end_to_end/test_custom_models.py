# SPDX-License-Identifier: Apache-2.0
"""Models that are classes of the user: the example of the README, the laws of a run, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oumi.core.configs import TrainingConfig
from oumi.core.errors import ConfigError
from oumi.core.inspect import gather_facts
from oumi.core.log import logger
from oumi.core.models.base_model import BaseModel
from oumi.core.models.build import build_model
from oumi.core.plan.plan import make_plan
from oumi.core.plan.refusals import refusals
from oumi.core.registry import REGISTRY, RegistryType, import_extra_files, register
from oumi.core.results.chat_model import load_chat_model
from oumi.core.train import train
from oumi.models import CNNClassifier, MLPEncoder
from tests.fork_server import run_python
from tests.ranks import run_ranks
from tests.runs import losses, tiny_config, weights

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## Your own model\n")[2].partition("\n## ")[0]
CODE, YAML, COMMANDS = re.findall(r"```\w+\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The class of the README, registered here and for processes that are started; the file that lists its own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_gpt.py").write_text(CODE)
    (folder / "extra.txt").write_text(str(folder / "my_gpt.py"))
    import_extra_files.cache_clear()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OUMI_EXTRA_DEPS_FILE", str(folder / "extra.txt"))
        import_extra_files()
        yield folder / "extra.txt"


def built(config: TrainingConfig) -> Any:
    return build_model(make_plan(config, gather_facts(config)), torch.device("cpu"))


def name_of(model_class: Any) -> str:
    """Returns the name under which a class is registered for these tests."""
    name = f"tests/{model_class.__name__}"
    if not REGISTRY.contains(name, RegistryType.MODEL):
        register(name, RegistryType.MODEL)(model_class)
    return name


def own_config(folder: Path, name: str = "MyGpt", **training: Any) -> TrainingConfig:
    config = tiny_config(folder, **training)
    config.model.tokenizer_name, config.model.model_name = config.model.model_name, name
    config.model.model_max_length, config.model.load_pretrained_weights = 128, False
    config.model.model_kwargs = {"vocab_size": 260}
    return config


def test_the_example_of_the_readme_trains_and_is_loaded_again(tmp_path: Path) -> None:
    (tmp_path / "my_gpt.py").write_text(CODE)
    (tmp_path / "own.yaml").write_text(YAML)
    (tmp_path / "books").mkdir()
    text = " ".join(f"{i} sheep and {i + 1} goats make {2 * i + 1} animals in a field." for i in range(400))
    (tmp_path / "books" / "one.txt").write_text(text)
    (tmp_path / "own_code.txt").write_text("my_gpt.py\n")
    run = partial(run_python, folder=tmp_path, OUMI_EXTRA_DEPS_FILE="own_code.txt")
    tokenize, _, command = COMMANDS.strip().splitlines()
    for line in (tokenize, command.partition(" ")[2]):
        result = run("-m", *line.split())
        assert result.returncode == 0, result.stderr
    out = tmp_path / "output" / "own"
    assert losses(out)[-1] < losses(out)[0] - 1
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "MyGpt"
    assert config["init_kwargs"] == {"vocab_size": 512, "width": 64, "num_layers": 2, "max_length": 128, "dropout": 0.0}
    assert "MyGpt.from_pretrained" in (out / "README.md").read_text()
    options = "--model.model_name output/own --model.load_pretrained_weights true --training.max_steps 1"
    command = f"oumi train -c own.yaml {options} --model.model_kwargs={{}} --training.output_dir output/more"
    result = run("-m", *command.split())
    assert result.returncode == 0, result.stderr
    assert "of type `MyGpt`" not in result.stderr, "transformers reads nothing of its config"
    more = tmp_path / "output" / "more"
    assert losses(more)[0] < losses(out)[0] - 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (more / name).read_bytes() == (out / name).read_bytes()


def test_the_loss_does_not_depend_on_the_trainer_nor_on_how_a_step_is_cut(tmp_path: Path, own: Path) -> None:
    shape = {"max_steps": 3, "optimizer": "sgd"}
    runs = {
        "whole": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        "cut": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "hf": {"trainer_type": "HF"},
    }
    for name, training in runs.items():
        config = own_config(tmp_path, **shape, **training, output_dir=str(tmp_path / name))
        config.data.train.train_target = "ALL_ASSISTANT_TURNS"
        train(config)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert losses(tmp_path / "hf") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    for name in ("cut", "hf"):
        torch.testing.assert_close(weights(tmp_path / name), weights(tmp_path / "whole"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("trainer", ["OUMI", "HF"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_run(
    tmp_path: Path, own: Path, trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own_config(tmp_path, trainer_type=trainer, max_steps=6, save_steps=3)
    config.model.model_kwargs = {"vocab_size": 260, "dropout": 0.1}
    config.training.try_resume_from_last_checkpoint = True
    train(config)
    out = tmp_path / "out"
    whole, whole_losses = weights(out), losses(out)
    shutil.rmtree(out / "checkpoint-6")
    (out / "model.safetensors").unlink()
    capsys.readouterr()
    train(config)
    assert "step 3: saved" not in capsys.readouterr().err, "it goes on after step 3"
    assert losses(out) == whole_losses
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(out).items())


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one(tmp_path: Path, own: Path) -> None:
    train(own_config(tmp_path, max_steps=3, optimizer="sgd", output_dir=str(tmp_path / "one")))
    config = own_config(tmp_path, max_steps=3, optimizer="sgd", gradient_accumulation_steps=1)
    config.to_yaml(tmp_path / "two.yaml")
    variables = {"OUMI_EXTRA_DEPS_FILE": str(own)}
    for code, output in run_ranks(2, "-m", "oumi", "train", "-c", "two.yaml", folder=tmp_path, **variables):
        assert code == 0, output
    torch.testing.assert_close(weights(tmp_path / "out"), weights(tmp_path / "one"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.use_peft", True), ("training.compile", True), ("training.enable_gradient_checkpointing", True),
        ("training.eval_samples", 2), ("model.attn_implementation", "eager"), ("model.text_only", True),
        ("model.enable_liger_kernel", True), ("model.adapter_model", "a"), ("model.load_pretrained_weights", True),
        ("model.model_kwargs", {"vocab_size": 260, "disable_dropout": True}), ("model.tokenizer_name", None),
        ("model.model_max_length", None), ("training.trainer_type", "TRL_SFT"), ("training.method", "dpo"),
        ("fsdp.enable_fsdp", True),
    ],
)  # fmt: skip
def test_what_a_registered_model_does_not_support_is_refused_by_its_key(
    tmp_path: Path, own: Path, key: str, value: Any
) -> None:
    config = own_config(tmp_path)
    assert not refusals(config)
    section, _, name = key.partition(".")
    setattr(getattr(config, section), name, value)
    assert any(problem.key.startswith(key) for problem in refusals(config))


class Base(BaseModel):
    """Logits of each token alone; the classes below harm it."""

    def __init__(self, vocab_size: int = 260, **kwargs: Any) -> None:
        super().__init__(vocab_size=vocab_size, **kwargs)
        self.table = nn.Embedding(vocab_size, 8)
        self.head = nn.Linear(8, vocab_size, bias=False)

    @property
    def criterion(self) -> Any:
        return nn.functional.cross_entropy

    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"logits": self.head(self.table(input_ids))}


class LossAlone(Base):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"loss": self.head(self.table(input_ids)).mean()}


class LooksAhead(Base):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"logits": self.head(self.table(input_ids).mean(1, keepdim=True) + self.table(input_ids))}


class LooksAheadFromZero(LooksAhead):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)


class MixesRows(Base):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"logits": self.head(self.table(input_ids) + self.table(input_ids[:, :1]).mean(0))}


class TooShort(Base):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"logits": self.head(self.table(input_ids) + torch.zeros(64, 8)[torch.arange(input_ids.shape[1])])}


class FewTokens(Base):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"logits": nn.functional.pad(self.head(self.table(input_ids)), (0, 4))}


class Forgets(Base):
    def __init__(self, vocab_size: int = 9, width: int = 4) -> None:
        super().__init__(vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("model_class", "kwargs", "message"),
    [
        (LossAlone, {}, "must return a dict with logits"),
        (LooksAhead, {}, "depend on later tokens"),
        (LooksAheadFromZero, {}, "depend on later tokens"),
        (MixesRows, {}, "depend on later tokens, on padding or on other rows"),
        (TooShort, {}, r"tried on rows of 128 tokens: IndexError.*test_custom_models\.py:\d+"),
        (FewTokens, {}, "IndexError"),
        (Forgets, {"width": 8}, r"must pass width to super\(\).__init__"),
        (Forgets, {"widht": 8}, "widht: Forgets has no such argument, did you mean 'width'"),
        (MLPEncoder, {}, "RuntimeError"),
        (CNNClassifier, {"image_width": 8, "image_height": 8}, "takes no input_ids"),
        (nn.Linear, {}, "not a subclass of"),
    ],
)
def test_a_class_that_cannot_be_trained_on_the_next_token_is_refused(
    tmp_path: Path, model_class: Any, kwargs: dict[str, Any], message: str
) -> None:
    config = own_config(tmp_path, name_of(model_class))
    config.model.model_kwargs = kwargs
    with pytest.raises(ConfigError, match=message):
        built(config)


def test_a_module_is_frozen_by_its_path_in_the_class(tmp_path: Path, own: Path) -> None:
    config = own_config(tmp_path)
    config.model.freeze_layers = ["layers.layers.0"]
    frozen = [n for n, p in built(config).named_parameters() if not p.requires_grad]
    assert len(frozen) == 12
    assert all(name.startswith("inner.layers.layers.0.") for name in frozen)
    config.model.freeze_layers = ["embeddings"]
    with pytest.raises(ConfigError, match="no part 'embeddings'"):
        built(config)


def test_weights_that_begin_with_zero_do_so_after_the_trial(tmp_path: Path) -> None:
    class FromZero(Base):
        def __init__(self, vocab_size: int = 260) -> None:
            super().__init__(vocab_size=vocab_size)
            nn.init.zeros_(self.head.weight)

    torch.manual_seed(1)
    expected = FromZero().state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    model = built(own_config(tmp_path, name_of(FromZero)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.inner.state_dict().items())


def test_a_loss_of_its_own_is_compared(tmp_path: Path, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Shifts(Base):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            logits = self.head(self.table(input_ids))
            return {"logits": logits, "loss": self.criterion(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
                    if labels is not None else None}  # fmt: skip

    class Doubles(Shifts):
        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            outputs = super().forward(input_ids, labels)
            return outputs if labels is None else {**outputs, "loss": 2 * outputs["loss"]}

    logger.addHandler(caplog.handler)
    for model_class, differs in ((Shifts, False), (Doubles, True)):
        caplog.clear()
        built(own_config(tmp_path, name_of(model_class)))
        assert ("which is minimized instead" in caplog.text) == differs
    logger.removeHandler(caplog.handler)


def test_a_saved_model_is_loaded_strictly_and_only_by_its_class(tmp_path: Path, own: Path) -> None:
    model = CNNClassifier(image_width=8, image_height=12, output_dim=3)
    outputs = model(torch.zeros(2, 3, 12, 8), labels=torch.tensor([0, 2]))
    assert outputs["logits"].shape == (2, 3)
    assert outputs["loss"].ndim == 0
    model.save_pretrained(tmp_path / "cnn")
    loaded = CNNClassifier.from_pretrained(tmp_path / "cnn")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError, match="of class 'CNNClassifier', not MLPEncoder"):
        MLPEncoder.from_pretrained(tmp_path / "cnn")
    with pytest.raises(ConfigError, match="its weights are not those of CNNClassifier"):
        CNNClassifier.from_pretrained(tmp_path / "cnn", override_kwargs={"output_dim": 4})
    with pytest.raises(ConfigError, match=r"contains no other\.safetensors"):
        CNNClassifier.from_pretrained(tmp_path / "cnn", weights_filename="other.safetensors")
    with pytest.raises(ConfigError, match="argument 'x' must be JSON"):
        Base(x=torch.zeros(1))
    with pytest.raises(ConfigError, match=r"load it with CNNClassifier\.from_pretrained"):
        load_chat_model(tmp_path / "cnn")
    path = tmp_path / "cnn" / "config.json"
    path.write_text(path.read_text().replace("CNNC", "CNC"))
    (problem,) = refusals(own_config(tmp_path, str(path.parent)))
    assert problem.key == "model.model_name"
    assert "did you mean 'CNNClassifier'" in problem.message
