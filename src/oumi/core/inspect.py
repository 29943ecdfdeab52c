# SPDX-License-Identifier: Apache-2.0
"""Gathers the facts for a plan: the machine, the data and the model. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oumi.core.configs import ModelParams, TrainingConfig, TrainingParams
from oumi.core.configs.data import Truncation
from oumi.core.data.datasets import dataset_for, unread_arguments
from oumi.core.data.pipeline.mixture import draws_of
from oumi.core.data.sources.jsonl import index_lines
from oumi.core.data.sources.tabular import is_data_lines
from oumi.core.errors import ConfigError, DataError, did_you_mean
from oumi.core.hub import hub_errors
from oumi.core.log import logger
from oumi.core.plan.custom import is_registered
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.shapes import shape_of
from oumi.core.plan.trainer_kwargs import as_run
from oumi.core.recipes import resolve_asset
from oumi.core.registry import MODELS
from oumi.core.system import host
from oumi.core.system.filesystem import expanded

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_END_BYTES = 1 << 20
"""Bytes of each end of a file that its digest covers."""
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types")
_MIXERS = {"linear_attention", "conv", "mamba", "recurrent", "hybrid", "state_space"}
_STATE_SIZES = ("mamba_", "state_size", "ssm_state_size")
"""Beginnings of keys that only models with state-space layers have."""
_UNLIMITED = 1_000_000_000
"""Tokenizers without a maximum length have some number above this."""


def gather_facts(
    config: TrainingConfig,
    may_download: bool = False,
    counts_rows: bool = True,
    local_size: int = 1,
    machine: host.Host | None = None,
) -> Facts:
    """Returns the facts for a plan.

    Args:
        config: The run.
        may_download: Download the few small files that describe a model of the Hub. Otherwise facts that are not in
            the cache stay unknown.
        counts_rows: Count the rows of the training set, if that is possible without reading them.
        local_size: Number of processes of the run on a machine, which share its memory.
        machine: The machine, None for this one.

    Raises:
        ConfigError: The model does not exist, or is not accessible.
    """
    config = as_run(config)  # callers pass either the config of the user or that of the run
    machine = machine or host.describe_host()
    model = _model_facts(config.model, may_download)
    return Facts(
        device=machine.device,
        device_name=machine.device_name,
        has_bf16=machine.has_bf16,
        has_fp8=machine.has_fp8,
        num_cpus=machine.num_cpus,
        # Each process has a GPU of its own; CPU processes share the memory.
        memory_bytes=machine.memory_bytes // (local_size if machine.device == "cpu" else 1),
        free_bytes=_free_bytes(config.training),
        num_rows=_count_rows(config) if counts_rows else None,
        model=model,
        has_tight_heap=host.has_tight_heap(),
        without=host.disabled_optimizations(),
        missing=frozenset(name for name in _optional_packages(config, model) if find_spec(name) is None),
        unread=tuple(
            f"data.{split}.datasets[{i}].dataset_kwargs.{key}"
            for split in ("train", "validation")
            for i, params in enumerate(getattr(config.data, split).datasets)
            for key in unread_arguments(params)
        ),
    )


def _optional_packages(config: TrainingConfig, model: ModelFacts) -> list[str]:
    needs_deepspeed = config.deepspeed.enable_deepspeed and not config.training.trainer_type.spec.is_native
    is_quantized = (config.training.use_peft and config.peft.q_lora) or model.quantization == "bitsandbytes"
    return ["deepspeed"] * needs_deepspeed + ["bitsandbytes"] * is_quantized


def _free_bytes(training: TrainingParams) -> int:
    """Returns the bytes that a run may fill: free ones, and those of its own checkpoints, which a plan counts too."""
    output_dir = Path(training.output_dir).absolute()
    free = host.free_bytes(output_dir)
    if training.try_resume_from_last_checkpoint:
        with suppress(OSError):  # another process may delete some
            for manifest in output_dir.glob("checkpoint-*/MANIFEST.json"):
                free += sum(path.stat().st_size for path in manifest.parent.rglob("*") if path.is_file())
    return free


def index_ahead(config: TrainingConfig) -> None:
    """Indexes the lines of local files in a thread, while torch is imported; errors show when the files are read."""
    paths = [expanded(params.dataset_path or "") for params in config.data.train.datasets if params.is_file]
    if paths and not config.data.train.stream:
        # A daemon, so that a run that ends early does not wait for it.
        threading.Thread(target=_index, args=(paths,), daemon=True).start()


def _index(paths: Sequence[Path]) -> None:
    with suppress(OSError, DataError):
        for path in paths:
            if is_data_lines(path):
                index_lines(path)


def _count_rows(config: TrainingConfig) -> int | None:
    """Returns the rows of the training mixture, None if that takes reading all of it."""
    train = config.data.train
    # Packing and splitting make rows from tokens, so their number is known only after tokenizing.
    if train.pack or train.stream or train.truncation == Truncation.SPLIT:
        return None
    counts = []
    for params in train.datasets:
        count = params.sample_count if params.sample_count is not None else dataset_for(params).count()
        if count is None:
            return None
        counts.append(count)
    # A mixture with proportions draws more or fewer rows than its data sets have.
    proportions = [data.mixture_proportion for data in train.datasets if data.mixture_proportion is not None]
    return sum(draws_of(counts, proportions or None, train.mixture_strategy))


def _model_facts(model: ModelParams, may_download: bool) -> ModelFacts:
    """Returns the facts in the files of a model and its tokenizer."""
    name, revision = model.model_name, model.model_revision
    if is_registered(name):  # a class, which has no files
        return ModelFacts(are_available=True)
    if "/" not in name and (hint := did_you_mean(name, MODELS.names())):
        logger.warning(
            "model %s: no class of this name is registered%s It is taken for a model of the Hub.", name, hint
        )
    adapter_of = None
    path = _file(name, "config.json", revision, may_download)
    if path is None and (adapter := _file(name, "adapter_config.json", revision, may_download)) is not None:
        # The name is an adapter: the facts are those of the model that it was trained on.
        adapter_of = _read_json(adapter).get("base_model_name_or_path")
        if not isinstance(adapter_of, str):
            raise ConfigError(f"{adapter}: base_model_name_or_path is missing, so the model of the adapter is unknown")
        path = _file(adapter_of, "config.json", None, may_download)
    if path is None:
        if adapter_of is None and (folder := _folder(name)).is_dir():
            raise ConfigError(f"model {name}: {folder} contains no config.json, so it is not a model")
        return ModelFacts(adapter_of=adapter_of)
    config = _read_json(path)
    tensors = _tensors(path.parent) if model.load_pretrained_weights else {}
    tokenizer = model.tokenizer_name or name
    # A model for images keeps the settings of its language model in a section.
    text_config = config.get("text_config") or config
    length_file = _file(tokenizer, "tokenizer_config.json", revision if tokenizer == name else None, may_download)
    length = _read_json(length_file).get("model_max_length") if length_file is not None else None
    has_length = isinstance(length, (int, float)) and 0 < length < _UNLIMITED
    return ModelFacts(
        are_available=True,
        num_parameters=sum(math.prod(tensor["shape"]) for tensor in tensors.values()) if tensors else None,
        matrices={name: tuple(tensor["shape"]) for name, tensor in tensors.items() if len(tensor["shape"]) == 2},
        stored_dtype=_stored_dtype(config, tensors),
        max_positions=text_config.get("max_position_embeddings") or text_config.get("n_positions"),
        tokenizer_length=int(length) if has_length else None,
        adapter_of=adapter_of,
        sees_images="vision_config" in config,
        quantization=_quantization(config),
        mixers=_mixers(text_config),
        # The cache of the Hub keeps the files of a commit in `snapshots/<commit>/`.
        commit=path.parent.name if path.parent.parent.name == "snapshots" else None,
        digest=digest_of_weights(name, adapter_of, model.adapter_model) if model.load_pretrained_weights else None,
        shape=shape_of({**config, **model.model_kwargs}),
    )


def _mixers(text_config: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many layers mix tokens by a state or a convolution, by kind, as far as a config tells."""
    kinds = next((value for key in _KINDS_OF_LAYERS if isinstance(value := text_config.get(key), list)), None)
    if kinds is None and any(key.startswith(_STATE_SIZES) for key in text_config):
        kinds = ["state_space"] * (text_config.get("num_hidden_layers") or 0)
    return dict(Counter(kind for kind in kinds or () if kind in _MIXERS))


def _file(name: str, file: str, revision: str | None, may_download: bool) -> Path | None:
    """Returns a file of a model from its directory, the cache of the Hub, or the Hub; None if it has none."""
    folder = _folder(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    # Imported here: models in local directories need none of it.
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with hub_errors("model", name), suppress(RemoteEntryNotFoundError):
        if may_download:
            return Path(hf_hub_download(name, file, revision=revision))
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None  # an object if the cache knows that there is none
    return None


def _folder(name: str) -> Path:
    return expanded(str(resolve_asset(name)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def digest_of_weights(*names: str | None) -> str | None:
    """Returns a digest of the weights in local directories of models, None without any.

    It detects other weights under the same name. It covers the size and both ends of each file, so that no file is
    read completely.
    """
    folders = [_folder(name) for name in names if name is not None]
    digest, has_files = hashlib.sha256(), False
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.safetensors"))):
        has_files, size = True, path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read())
    return digest.hexdigest() if has_files else None


def _quantization(config: dict[str, Any]) -> str | None:
    """Returns the method by which the weights of a model are quantized."""
    settings = config.get("quantization_config")
    # The files of bitsandbytes from before it named itself say only how many bits they have.
    return str(settings.get("quant_method", "bitsandbytes")) if isinstance(settings, dict) else None


def _stored_dtype(config: dict[str, Any], tensors: dict[str, Any]) -> str | None:
    """Returns the dtype in a model's config, otherwise the most frequent one of its tensors."""
    name = config.get("dtype") or config.get("torch_dtype")
    if isinstance(name, str):
        return name
    dtypes = [_DTYPES[tensor["dtype"]] for tensor in tensors.values() if tensor["dtype"] in _DTYPES]
    return max(set(dtypes), key=dtypes.count) if dtypes else None


def _tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns dtype, shape and offsets of every tensor in the safetensors files of a folder, from their headers."""
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, dict[str, Any]] = json.loads(file.read(min(length, size)))
            header.pop("__metadata__", None)
            # A download that broke off has a valid header, but too few bytes.
            if size != 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0):
                raise ValueError("the size of the file is not that of its tensors")
        except (struct.error, ValueError, OverflowError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a safetensors file, or truncated") from error
        tensors |= header
    return tensors
