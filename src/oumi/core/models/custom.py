# SPDX-License-Identifier: Apache-2.0
"""Language models that are classes of the user, in the form in which transformers' models are trained.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from oumi.core.errors import ConfigError, OumiError, did_you_mean
from oumi.core.log import logger
from oumi.core.models.base_model import BaseModel
from oumi.core.models.load import freeze
from oumi.core.plan.frozen import PARTS
from oumi.core.plan.parts import ModelPlan
from oumi.core.recipes import resolve_asset
from oumi.core.system.filesystem import expanded

_INPUTS = ("input_ids", "attention_mask", "position_ids")
_PREFIX = 8
"""Tokens of the rows that are computed alone."""
_TOLERANCE = 1e-3
"""Difference of logits that is rounding, as a share of the largest one; the trial is in float32."""


class CustomConfig(PretrainedConfig):
    """What trainers read of a model; its own config is what `BaseModel.save_pretrained` writes."""

    model_type = "oumi_registered"


class CustomModel(PreTrainedModel):
    """A model of the user behind the interface of transformers: padded rows in, logits [B, T, V] out."""

    config_class = CustomConfig
    accepts_loss_kwargs = False  # the loss is computed from the logits
    generation_config = None

    def __init__(self, inner: BaseModel) -> None:
        super().__init__(CustomConfig())
        self.inner = inner
        self.token_flops = 0.0
        """Floating-point operations per token, forward, as a trial counts them on short rows."""
        parameters = inspect.signature(inner.forward).parameters.values()
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        if "input_ids" not in names and not takes_all:
            raise ConfigError(
                f"model {type(inner).__name__}: its forward takes no input_ids, so it is not a language model: it "
                f"takes {', '.join(sorted(names))}"
            )
        self._inputs = {name for name in _INPUTS if takes_all or name in names}
        self.takes_labels = takes_all or "labels" in names

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Returns the logits of padded rows; the model gets those of the three arguments that it takes."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in inputs.items() if name in self._inputs and value is not None}
        return CausalLMOutput(logits=self.inner(**given)["logits"])

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embedding of the vocabulary, or one without weights where the model has none of that size."""
        size = self.config.vocab_size
        tables = (module for module in self.inner.modules() if isinstance(module, nn.Embedding))
        table = next((table for table in tables if table.num_embeddings == size), None)
        return nn.Embedding(size, 1, device="meta") if table is None else table

    def get_output_embeddings(self) -> None:
        """Returns nothing: how the logits are computed is the model's own matter."""

    def get_decoder(self) -> nn.Module:
        """Returns the model of the user."""
        return self.inner

    def save_pretrained(self, save_directory: Path | str, **_: Any) -> None:
        """Writes the model in its own form, see `BaseModel.save_pretrained`."""
        self.inner.save_pretrained(save_directory)


def load_custom(
    plan: ModelPlan, model_class: type[BaseModel], device: torch.device, weights_from: Path | None = None
) -> CustomModel:
    """Returns a model of the user on `device`, in eval mode, after a trial on random tokens.

    Args:
        plan: The plan of the model, whose overrides are arguments of the class.
        model_class: The registered class.
        device: Device of the model.
        weights_from: A checkpoint whose weights replace those of the plan.

    Raises:
        ConfigError: An unknown argument, or a model that cannot be trained on the next token: see `_check`.
    """
    name, kwargs = model_class.__name__, dict(plan.config_overrides)
    if not (isinstance(model_class, type) and issubclass(model_class, BaseModel)):
        raise ConfigError(f"model.model_name: {name} is not a subclass of oumi.core.models.BaseModel")
    parameters = inspect.signature(model_class).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = list(parameters)
    for key in [] if takes_all else kwargs.keys() - parameters.keys():
        hint = did_you_mean(key, known) or f"; it takes {', '.join(known) or 'none'}"
        raise ConfigError(f"model.model_kwargs.{key}: {name} has no such argument{hint}")
    with _explained(f"model {name} with model.model_kwargs {kwargs}"):
        if weights_from is not None or plan.pretrained:
            folder = weights_from or expanded(str(resolve_asset(plan.name)))
            inner = model_class.from_pretrained(folder, override_kwargs=kwargs)
        else:
            inner = model_class(**kwargs)
    lost = [key for key in kwargs if key not in inner.init_kwargs]
    if lost:  # the saved model would be built with the default
        raise ConfigError(f"model {name}: its __init__ must pass {', '.join(lost)} to super().__init__ by name")
    model = CustomModel(inner).to(device).eval()
    with torch.random.fork_rng(), _nothing_zero(model):
        torch.manual_seed(0)
        _check(model, max(plan.max_length or _PREFIX, 2))
    _freeze(inner, plan.freeze)
    return model if plan.dtype == "auto" else model.to(getattr(torch, plan.dtype))


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    """Converts what code of the user raises to a ConfigError with its place."""
    try:
        yield
    except OumiError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next(frame for frame in reversed(frames) if "site-packages" not in frame.filename)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ConfigError(f"{subject}: {reason} ({place.filename}:{place.lineno})") from error


@contextmanager
def _nothing_zero(model: nn.Module) -> Iterator[None]:
    """Fills weights that are all zero, which would hide what the logits depend on, with random numbers meanwhile."""
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    for parameter in zeros:
        parameter.data.normal_(std=0.02)
    try:
        yield
    finally:
        for parameter in zeros:
            parameter.data.zero_()


@torch.no_grad()
def _check(model: CustomModel, max_length: int) -> None:
    """Sets the size of the vocabulary by a trial on two rows of random tokens.

    Raises:
        ConfigError: The model fails on rows of that length or on a token of its vocabulary, returns no logits
            [B, T, V], or a logit depends on later tokens, on padding or on other rows.
    """
    name = type(model.inner).__name__
    with _explained(f"model {name}, tried on rows of {max_length} tokens"):
        output = model.inner(**{"input_ids": torch.zeros(2, 2, dtype=torch.int64, device=model.device)})
        logits = output.get("logits") if isinstance(output, dict) else None
        if logits is None:
            raise ConfigError(f"model {name}: its forward must return a dict with logits: a loss alone is a mean over "
                              "a micro-batch, which cannot be weighted by the tokens of a step")  # fmt: skip
        if logits.ndim != 3 or logits.shape[:2] != (2, 2):
            raise ConfigError(
                f"model {name}: logits of rows [2, 2] have shape {list(logits.shape)}, expected [2, 2, V]"
            )
        size = model.config.vocab_size = logits.shape[-1]
        tokens_BT = torch.randint(size, (2, max_length), device=model.device)
        tokens_BT[0, 0] = size - 1
        length = min(_PREFIX, max_length - 1)  # at least 1
        with FlopCounterMode(display=False) as counter:
            alone = torch.cat([model(row[None, :length]).logits for row in tokens_BT])
        model.token_flops = counter.get_total_flops() / (2 * length)
        mask_BT = torch.ones_like(tokens_BT)
        tokens_BT[0, length:] = mask_BT[0, length:] = 0
        logits_BTV = model(tokens_BT, mask_BT, torch.arange(max_length, device=model.device).expand(2, -1)).logits
    difference = (logits_BTV[:, :length] - alone).abs().amax()
    if not difference <= _TOLERANCE * alone.abs().amax().clamp(min=1):
        raise ConfigError(
            f"model {name}: its logits depend on later tokens, on padding or on other rows (by {difference:.3g}), so "
            "the loss of the next token would see its own targets"
        )
    if model.takes_labels:
        _compare_loss(model, tokens_BT[1:], logits_BTV[1:])


def _compare_loss(model: CustomModel, tokens_BT: torch.Tensor, logits_BTV: torch.Tensor) -> None:
    """Logs that the loss of the class itself is another one than the loss that is minimized."""
    name = type(model.inner).__name__
    with _explained(f"model {name}, tried with labels"):
        own = model.inner(**{"input_ids": tokens_BT, "labels": tokens_BT}).get("loss")
    loss = F.cross_entropy(logits_BTV[0, :-1], tokens_BT[0, 1:])
    if own is not None and not torch.allclose(own, loss, rtol=1e-3):
        logger.warning(
            "model %s: its own loss (%.4f) is not the mean cross-entropy of the next token (%.4f), which is minimized "
            "instead; labels are the tokens themselves, not shifted",
            name,
            own,
            loss,
        )


def _freeze(inner: BaseModel, names: tuple[str, ...]) -> None:
    for name in names:
        if name in PARTS and name not in dict(inner.named_modules()):
            raise ConfigError(f"model.freeze_layers: a registered model has no part '{name}'; name a module of it")
    freeze(inner, names)
