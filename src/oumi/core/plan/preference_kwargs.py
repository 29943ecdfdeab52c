# SPDX-License-Identifier: Apache-2.0
"""Arguments in `trainer_kwargs` of TRL's preference trainers: former ones, and those that depend on each other.

TRL has dropped arguments that files for its older versions set. Those that can be carried out still are; those without
any effect are accepted with a note; the others are refused with what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from oumi.core.configs import TrainerType, TrainingConfig, TrainingParams
from oumi.core.configs.tree import scalar
from oumi.core.errors import did_you_mean

_PAIRS = (TrainerType.TRL_DPO, TrainerType.TRL_ORPO, TrainerType.TRL_CPO)
_TRAINERS = (*_PAIRS, TrainerType.TRL_KTO)

_NO_EFFECT = {
    "label_pad_token_id": "a mask marks the trained tokens, not a label",
    "padding_value": "padded positions are never read",
    "max_target_length": "only encoder-decoder models had it",
    "is_encoder_decoder": "the model says it",
    "force_use_ref_model": "the reference is always the model as it was before training",
    "use_logits_to_keep": "TRL computes the logits of trained tokens alone wherever it can",
    "base_model_attribute_name": "TRL finds the decoder by itself",
    "padding_free": "TRL has switched it off; trainer OUMI pads nothing",
}
"""Argument -> why no value of it changes anything."""

_REFUSED = {
    "sync_ref_model": "a checkpoint does not contain the changed reference, so a resumed run would differ",
    "ref_model_mixup_alpha": "only sync_ref_model reads it, which is not supported",
    "ref_model_sync_steps": "only sync_ref_model reads it, which is not supported",
    "generate_during_eval": "samples during an evaluation are not supported",
    "ref_model_init_kwargs": "the reference is a copy of the model, which model.model_kwargs sets",
    "model_adapter_name": "set model.adapter_model and model.adapter_trainable to train a given adapter",
    "ref_adapter_name": "the reference of a given adapter (model.adapter_model) is the adapter as it was",
    "tools": "rows bring their own tools, in their column tools",
}
"""Argument -> why it is refused, unless it is null or false."""

_LIMITS = {
    "max_prompt_length": "longer prompts keep their last {:,} tokens",
    "max_completion_length": "longer answers keep their first {:,} tokens",
}
"""Arguments that the data path carries out, see `plan_data` -> what it does."""

_LOSSES: Mapping[TrainerType, tuple[str, ...]] = {
    TrainerType.TRL_DPO: (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    TrainerType.TRL_KTO: ("kto", "apo_zero_unpaired"),
    TrainerType.TRL_CPO: ("sigmoid", "hinge", "ipo", "simpo"),
}  # fmt: skip
"""Losses of a trainer, the first one is the default. TRL itself would only report another name in the first step."""

_SMOOTHED = {
    TrainerType.TRL_DPO: {"robust", "exo_pair", "aot", "aot_unpaired"},
    TrainerType.TRL_CPO: {"sigmoid", "simpo"},
}
"""Losses that read `label_smoothing`."""

_OF_REFERENCE = {"beta", "reference_free", "precompute_ref_log_probs", "ld_alpha", "f_divergence_type"}
"""Arguments of how a loss of pairs compares with the reference."""

_POSITIVE, _NOT_NEGATIVE, _ANY = (1e-9, inf, ", above 0"), (0.0, inf, ", 0 or more"), (-inf, inf, "")
_NUMBERS: Mapping[str, tuple[float, float, str]] = {
    "beta": _POSITIVE,
    "discopop_tau": _POSITIVE,
    "desirable_weight": _NOT_NEGATIVE,
    "undesirable_weight": _NOT_NEGATIVE,
    "cpo_alpha": _NOT_NEGATIVE,
    "simpo_gamma": _NOT_NEGATIVE,
    "rpo_alpha": _NOT_NEGATIVE,
    "alpha": _ANY,
    "f_alpha_divergence_coef": _ANY,
    "ld_alpha": (0.0, 1.0, ", from 0 to 1"),
    "label_smoothing": (0.0, 0.499, ", 0 to below 0.5"),
}
"""Arguments that are numbers -> the smallest, the largest, in words. TRL would only fail in the first step, or not."""
_FLAGS = ("reference_free", "precompute_ref_log_probs", "disable_dropout", "use_weighting")
_MAY_BE_NULL = ("ld_alpha", "rpo_alpha")
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

_ONLY_OF_LOSS = {"discopop_tau": "discopop", "simpo_gamma": "simpo"}
"""Argument -> the only loss that reads it."""

_ONLY_WITH: Mapping[str, tuple[str, Any]] = {
    "f_alpha_divergence_coef": ("f_divergence_type", "alpha_divergence"),
    "precompute_ref_batch_size": ("precompute_ref_log_probs", True),
}
"""Argument -> the only value of another argument with which it is read."""


def former_arguments(training: TrainingParams) -> dict[str, Any]:
    """Returns `trainer_kwargs` with the arguments that TRL has, which mean what the former ones among them meant."""
    kwargs = dict(training.trainer_kwargs)
    if training.trainer_type not in _TRAINERS:
        return kwargs
    kwargs |= {name: _value(kwargs[name]) for name in (*_NUMBERS, *_FLAGS) if name in kwargs}
    for name in (*_NO_EFFECT, *_REFUSED, *_LIMITS):
        kwargs.pop(name, None)
    if training.trainer_type == TrainerType.TRL_DPO:
        if kwargs.pop("reference_free", False):  # its log-probabilities are set to zero, see `trl_preferences.py`
            kwargs["precompute_ref_log_probs"] = True
        if (weight := kwargs.pop("rpo_alpha", None)) is not None:
            kwargs |= {"loss_type": [*losses_of(training), "sft"], "loss_weights": [1.0, weight]}
    return kwargs


def has_no_effect(name: str, training: TrainingParams) -> bool:
    """Returns True for an argument that the trainer accepts without reading it."""
    return training.trainer_type in _TRAINERS and name in _NO_EFFECT


def is_reference_free(training: TrainingParams) -> bool:
    """Returns True if the log-probabilities of the reference count as zero."""
    return training.trainer_type == TrainerType.TRL_DPO and bool(_value(training.trainer_kwargs.get("reference_free")))


def computes_reference_before(training: TrainingParams) -> bool:
    """Returns True if the log-probabilities of the reference are known before the first step."""
    return is_reference_free(training) or bool(_value(training.trainer_kwargs.get("precompute_ref_log_probs")))


def losses_of(training: TrainingParams) -> list[str]:
    """Returns the names of the losses; empty for a trainer with a single one."""
    default = _LOSSES.get(training.trainer_type, ())[:1]
    names = training.trainer_kwargs.get("loss_type", list(default))
    return list(names) if isinstance(names, list) else [names]


def preference_notes(training: TrainingParams) -> Iterator[str]:
    """Yields a note for each argument that is carried out in another way, or has no effect."""
    if losses_of(training) == ["sft"]:
        for name in (name for name in training.trainer_kwargs if name in _OF_REFERENCE):
            yield f"training.trainer_kwargs.{name}: loss sft alone has no reference; it affects the metrics at most"
    if training.trainer_type not in _TRAINERS:
        return
    trainer, kwargs, losses = training.trainer_type, training.trainer_kwargs, losses_of(training)
    for name in kwargs:
        key, value = f"training.trainer_kwargs.{name}", kwargs[name]
        if name in _NO_EFFECT and value is not None:
            yield f"not read: {key}: {_NO_EFFECT[name]}"
        elif (loss := _ONLY_OF_LOSS.get(name)) and loss not in losses:
            yield f"not read: {key}: only loss_type {loss} reads it"
        elif (other := _ONLY_WITH.get(name)) and _value(kwargs.get(other[0])) != other[1]:
            yield f"not read: {key}: only {other[0]} {_shown(other[1])} reads it"
    for name, effect in _LIMITS.items():
        if kwargs.get(name) is not None:
            yield f"rows: {effect.format(kwargs[name])}, as training.trainer_kwargs.{name} says"
    if trainer == TrainerType.TRL_DPO and kwargs.get("rpo_alpha") is not None:
        weight = _value(kwargs["rpo_alpha"])
        yield f"loss: {losses[0]} plus {weight:g} times sft, as training.trainer_kwargs.rpo_alpha says"
    if is_reference_free(training):
        yield "reference: none, as training.trainer_kwargs.reference_free says: its log-probabilities count as zero"


def preference_problems(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yields what TRL's preference trainers cannot carry out, as key and message."""
    training = config.training
    if training.trainer_type not in _TRAINERS:
        return
    if config.data.train.stream:
        yield "data.train.stream", f"not supported by {training.trainer_type.name}, only by trainer OUMI"
    yield from _wrong_arguments(training)
    yield from _wrong_reference(config)
    if training.trainer_type != TrainerType.TRL_KTO or losses_of(training) != ["kto"]:
        return
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        is_read = key == "per_device_train_batch_size" or training.eval_strategy != "no"
        if is_read and getattr(training, key) == 1:
            message = "1: loss kto compares each prompt with another completion of its micro-batch: set 2 or more"
            yield f"training.{key}", f"{message}, or training.trainer_kwargs.loss_type: apo_zero_unpaired"


def _wrong_arguments(training: TrainingParams) -> Iterator[tuple[str, str]]:
    kwargs, trainer, losses = training.trainer_kwargs, training.trainer_type, losses_of(training)
    for name, reason in _REFUSED.items():
        if kwargs.get(name) not in (None, False):
            yield f"training.trainer_kwargs.{name}", reason
    yield from _wrong_values(kwargs)
    for name in _LIMITS:
        if (limit := kwargs.get(name)) is not None and (type(limit) is not int or limit < 1):  # True is an int
            yield f"training.trainer_kwargs.{name}", f"got {limit!r}, must be a whole number of tokens, 1 or more"
    if trainer not in _LOSSES:
        return
    key = "training.trainer_kwargs.loss_type"
    for name in losses:
        if name not in _LOSSES[trainer]:
            hint = did_you_mean(str(name), _LOSSES[trainer]) or f"; it has {', '.join(_LOSSES[trainer])}"
            yield key, f"{trainer.name} has no loss '{name}'{hint}"
    if len(losses) != 1 and (trainer != TrainerType.TRL_DPO or not losses):
        yield key, f"{trainer.name} takes a single loss" if losses else "names no loss"
    smoothed = _SMOOTHED.get(trainer, set())
    if _value(kwargs.get("label_smoothing")) and smoothed and not smoothed & set(losses):
        yield (
            "training.trainer_kwargs.label_smoothing",
            f"loss {', '.join(losses)} of TRL ignores it; {', '.join(sorted(smoothed))} read it",
        )
    if kwargs.get("rpo_alpha") is not None and trainer == TrainerType.TRL_DPO:
        key = "training.trainer_kwargs.rpo_alpha"
        if len(losses) != 1 or kwargs.get("loss_weights") is not None:
            yield key, "write it as a weight of the loss sft: loss_type: [sigmoid, sft], loss_weights: [1.0, ...]"


def _wrong_values(kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the arguments of a wrong type, or outside their range."""
    for name, (lowest, highest, words) in _NUMBERS.items():
        value = _value(kwargs.get(name, max(lowest, 0.0)))
        is_null = value is None and name in _MAY_BE_NULL
        if not is_null and not (type(value) in (int, float) and lowest <= value <= highest):
            yield f"training.trainer_kwargs.{name}", f"got {kwargs[name]!r}, must be a number{words}"
    for name in _FLAGS:
        if type(_value(kwargs.get(name, False))) is not bool:
            yield f"training.trainer_kwargs.{name}", f"got {kwargs[name]!r}, must be true or false"
    if (divergence := kwargs.get("f_divergence_type", _DIVERGENCES[0])) not in _DIVERGENCES:
        hint = did_you_mean(str(divergence), _DIVERGENCES) or f"; known: {', '.join(_DIVERGENCES)}"
        yield "training.trainer_kwargs.f_divergence_type", f"unknown divergence '{divergence}'{hint}"
    weights = kwargs.get("loss_weights")
    if weights is not None and not (isinstance(weights, list) and all(type(x) in (int, float) for x in weights)):
        yield "training.trainer_kwargs.loss_weights", f"got {weights!r}, must be a list of numbers, one for each loss"


def _value(value: Any) -> Any:
    """Returns the number or the flag that text of an environment variable stands for."""
    return scalar(value) if isinstance(value, str) else value


def _wrong_reference(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    training, key = config.training, "training.trainer_kwargs.precompute_ref_log_probs"
    trainer = training.trainer_type
    if trainer not in (TrainerType.TRL_DPO, TrainerType.TRL_KTO):
        return
    if computes_reference_before(training):
        if trainer == TrainerType.TRL_KTO and losses_of(training) == ["kto"]:
            yield key, "the completion with which loss kto compares a prompt changes in each epoch; leave it out"
        if config.fsdp.enable_fsdp or config.deepspeed.enable_deepspeed:
            yield key, "not supported for a model that is divided by fsdp or deepspeed; leave it out"
    if training.use_peft and config.peft.lora_bias != "none":
        yield "peft.lora_bias", f"{config.peft.lora_bias} trains the base, so {trainer.name} has no reference; set none"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
