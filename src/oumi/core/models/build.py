# SPDX-License-Identifier: Apache-2.0
"""Builds the model that a run trains: all of its weights, or an adapter on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from oumi.core.batch import Batch
from oumi.core.distributed.sharding import replace_parameters
from oumi.core.errors import ConfigError
from oumi.core.log import logger
from oumi.core.models.adapters import add_lora, base_weight_name, below_adapter, is_adapted, load_adapter
from oumi.core.models.custom import load_custom
from oumi.core.models.eva import begin_with_inputs
from oumi.core.models.initialization import load_trained, restore_from, take_from_base
from oumi.core.models.load import freeze, load_model
from oumi.core.models.vocabulary import settings_for_tokens
from oumi.core.plan.choices import FLAT_ATTENTIONS
from oumi.core.plan.custom import custom_model
from oumi.core.plan.parts import Plan
from oumi.core.recipes import resolve_asset
from oumi.core.system.filesystem import expanded

_CACHE_LINE = 64
"""Bytes."""
_MAX_OFFSET = 8
"""Rows of a table of positions that no token uses; OPT has two."""


def build_model(
    plan: Plan,
    device: torch.device,
    checkpoint: Path | None = None,
    weights_from: Path | None = None,
    documents: Iterable[Batch] | None = None,
) -> Any:
    """Returns the model of a checkpoint, or else the model of the plan, whose adapter, if any, is trained further.

    A model that is divided over ranks has no base weights yet, unless they are quantized, see `sharded.shard_model`.

    Args:
        plan: The plan of the run.
        device: Device of the model.
        checkpoint: Directory with the weights, or the adapter, of the run that is resumed.
        weights_from: Directory of the base weights, None for those that the plan names.
        documents: Documents of the run, from which a new adapter may begin, each as a batch; None if it is not trained.

    Raises:
        ConfigError: The attention of the plan does not run on a CPU, or rows may be longer than the model takes.
    """
    if (custom := custom_model(plan.model.name)) is not None:
        return load_custom(plan.model, custom, device, base_source(plan, checkpoint) or weights_from)
    if plan.device == "cpu" and plan.model.attention not in FLAT_ATTENTIONS:
        raise ConfigError(f"model.attn_implementation: {plan.model.attention} trains on a GPU only; sdpa is for all")
    is_full = plan.lora is None and plan.model.adapter is None
    if plan.sharding is not None and plan.model.quantization is None:
        device = torch.device("meta")
    model = load_model(plan.model, device, base_source(plan, checkpoint) or weights_from)
    _check_positions(model, plan.model.max_length)
    # The checkpoint of an adapter has no weights of the base model, so those always come from the plan.
    adapter = checkpoint or plan.model.adapter
    taken = plan.lora.taken_from_base if plan.lora else None
    if not is_full and adapter is not None and not taken:
        revision = None if checkpoint else plan.model.adapter_revision
        with shapes_on_host(model, keeps_copies=True) as shapes:
            adapted = load_adapter(shapes, adapter, is_trained=True, revision=revision)
        adapted.peft_config["default"].base_model_name_or_path = _base_name(plan)
        return _without_frozen(adapted, plan.model.freeze)
    if plan.lora is None:
        for parameter in model.parameters():
            # A weight that is mapped from a file has an arbitrary offset. Vector loads are faster from an aligned copy.
            # On the way to a GPU, all processes of a machine share the mapped file instead.
            is_trained_here = plan.device == "cpu" and parameter.requires_grad and parameter.device.type == "cpu"
            if is_trained_here and parameter.data_ptr() % _CACHE_LINE:
                parameter.data = parameter.data.clone()
        return model
    with shapes_on_host(model, keeps_copies=False) as shapes:
        # TRL multiplies by the weight of the head itself.
        tokens, whole = plan.model.added_tokens, plan.trainer not in ("OUMI", "HF")
        settings = settings_for_tokens(plan.lora.settings, shapes, tokens, whole)
        adapted = add_lora(shapes, replace(plan.lora, settings=settings), _base_name(plan))
    if taken and checkpoint is not None:
        restore_from(adapted, checkpoint)
    elif taken:
        take_from_base(adapted, taken, _weights_in_full(plan))
    elif plan.lora.begins_with_inputs and documents is not None:
        begin_with_inputs(adapted, documents)
    return _without_frozen(adapted, plan.lora.frozen)


def base_source(plan: Plan, checkpoint: Path | None) -> Path | None:
    """Returns a checkpoint if it has the base weights as Hugging Face files: without an adapter, and not in slices."""
    is_full = plan.lora is None and plan.model.adapter is None
    return checkpoint if checkpoint is not None and is_full and (checkpoint / "config.json").exists() else None


@contextmanager
def shapes_on_host(model: Any, keeps_copies: bool) -> Iterator[Any]:
    """Lets a model on the meta device appear to be on the host, so that an adapter gets weights there.

    Each base weight is a single zero, repeated without memory for it. Does nothing to a model with weights.

    Args:
        model: The model.
        keeps_copies: The copies of modules that are trained as a whole come from the files of the adapter, so they
            keep their weights.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        yield model
        return

    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    repeated = {
        id(p): nn.Parameter(torch.zeros((), dtype=p.dtype).expand(p.shape), p.requires_grad) for p in model.parameters()
    }
    replace_parameters(model, repeated)
    yield model
    without_weights = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for name, p in below_adapter(model).named_parameters()
        if base_weight_name(name) in names and not (keeps_copies and ".modules_to_save." in name)
    }
    replace_parameters(model, without_weights)


def router_loss_coefficient(model: Any) -> float:
    """Returns the factor of the auxiliary loss that balances experts, 0 if the model's config asks for no such loss."""
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return 0.0
    # JetMoE has the shorter name.
    return float(getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", 0.0)))


def _base_name(plan: Plan) -> str:
    """Returns the model that an adapter's config names as its base, which is found from any directory."""
    if not plan.model.pretrained:  # random weights have no name, and the plan saves them in `base`
        return str(plan.output_dir.absolute() / "base")
    folder = expanded(str(resolve_asset(plan.model.name)))
    return str(folder.absolute()) if folder.is_dir() else plan.model.name


def _check_positions(model: Any, max_length: int | None) -> None:
    """Raises ConfigError if rows may be longer than a table of positions: an index beyond it fails during training."""
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Rotary positions are computed, so a model that has no table takes longer rows.
    if not num_positions or max_length is None or max_length <= num_positions:
        return
    embeddings = ((name, module.weight) for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    for name, table in (*embeddings, *model.named_buffers()):
        # The table of another part, such as an image encoder, has another size.
        is_of_text = table.ndim > 1 and 0 <= len(table) - num_positions <= _MAX_OFFSET
        if is_of_text and any(word in name.rpartition(".")[2] for word in ("pos", "wpe")):
            raise ConfigError(
                f"model.model_max_length: rows may have {max_length} tokens, but the model has {num_positions} "
                f"positions ({name})"
            )


def _without_frozen(adapted: Any, frozen: tuple[str, ...]) -> Any:
    """Returns the model after freezing the adapters in frozen modules: what `freeze_layers` names does not move."""
    num_before = sum(weight.requires_grad for weight in adapted.parameters())
    freeze(below_adapter(adapted), frozen)
    if num_frozen := num_before - sum(weight.requires_grad for weight in adapted.parameters()):
        logger.info("model.freeze_layers: %d weights of adapters stay as they are", num_frozen)
    return adapted


def _weights_in_full(plan: Plan) -> Callable[[str], torch.Tensor]:
    """Returns a function that reads the weight [o, i] of a module before it is quantized, by the path of the module."""

    @cache
    def model() -> Any:
        # In the dtype of the files, which are mapped then and not copied.
        return load_model(replace(plan.model, quantization=None, dtype="auto"), torch.device("cpu"))

    def read(path: str) -> torch.Tensor:
        module = model().get_submodule(path)
        # bitsandbytes has a linear layer in its place, whose weight is the transpose.
        weight: torch.Tensor = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
        return weight.float()

    return read


def with_full_weights(plan: Plan, adapter: Path) -> Any:
    """Returns an adapter on the base weights of a plan as they are before training, in the memory of the host.

    Training may round them to few bits, take the beginning of the adapter out of them, or divide them over ranks.
    """
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)  # random weights are drawn first in a run
        # In the dtype of the files, which are mapped then and not copied.
        dtype = "auto" if plan.model.pretrained else plan.model.dtype
        model = load_model(replace(plan.model, quantization=None, freeze=(), dtype=dtype), torch.device("cpu"))
    return load_adapter(model, adapter, is_trained=False)


@torch.no_grad()
def load_weights(model: Any, plan: Plan, checkpoint: Path) -> None:
    """Copies the weights or the adapter of a checkpoint into a model of the same plan, in place.

    All weights are first loaded into a second model, since files may name and fuse them in another way than the model.
    """
    if is_adapted(model):
        load_trained(model, checkpoint)
        return
    loaded = build_model(plan, model.device, checkpoint).state_dict()
    for name, tensor in model.state_dict().items():
        tensor.copy_(loaded[name])
