# SPDX-License-Identifier: Apache-2.0
"""`oumi infer`: answers a file of questions, or chats with the model of a config."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oumi.cli.chat import System, run_session
from oumi.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from oumi.core.configs.inference import InferenceConfig
    from oumi.core.results.answering import Answering, Outcome
    from oumi.core.results.chat_model import ChatModel

_BATCH_SIZE = 16
_MAX_SHOWN = 20
"""Rows without an answer that are listed."""


def infer(
    context: typer.Context,
    model_dir: Annotated[Path | None, typer.Argument(help="Directory of a trained model.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Inference config; with -i also a training config.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--input", help="File of rows with messages, prompt or text.")
    ] = None,
    answers: Annotated[Path | None, typer.Option("--output", help="File of the answers, JSON Lines.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Chat at the terminal.")] = False,
    system: System = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Above 0: tokens are sampled.")] = None,
) -> None:
    """Answer a file of questions: `oumi infer MODEL_DIR --input in.jsonl --output out.jsonl`, or `oumi infer -c FILE`.

    Any key of the config can be set: --generation.top_p 0.9. The same command again goes on where it was stopped.
    """
    if (model_dir is None) == (config is None):
        raise ConfigError("expected either the directory of a model, or -c with a config")
    flags: dict[str, tuple[str, Any]] = {
        "model.model_name": ("MODEL_DIR", model_dir),
        "input_path": ("--input", questions),
        "output_path": ("--output", answers),
        "generation.max_new_tokens": ("--max-new-tokens", max_new_tokens),
        "generation.temperature": ("--temperature", temperature),
    }
    settings = _settings(config, flags, context.args, may_train=interactive)
    for key in settings.not_read(in_chat=interactive):
        typer.echo(f"not read: {key}", err=True)
    if interactive:
        generation = settings.generation
        model = _load(settings, needs_template=True)
        return run_session(model, system, generation.max_new_tokens, generation.sampling_temperature)
    for key, flag in (("input_path", "--input"), ("output_path", "--output")):
        if not getattr(settings, key):
            raise ConfigError(f"{key}: required; set it in the config, or with {flag}")
    from oumi.core.results.answering import answer_file
    from oumi.core.system.filesystem import expanded

    source, target = expanded(str(settings.input_path)), expanded(str(settings.output_path))
    began = time.perf_counter()
    outcome = answer_file(_answering(settings, system), source, target, _show_progress)
    _report(outcome, target, time.perf_counter() - began)


def _settings(
    config: str | None, flags: dict[str, tuple[str, Any]], arguments: list[str], may_train: bool
) -> InferenceConfig:
    """Returns the config of a file with flags and overrides; of a training config the model in its output_dir."""
    from oumi.cli.overrides import parse_overrides
    from oumi.core.configs.inference import InferenceConfig
    from oumi.core.configs.loading import read_text
    from oumi.core.configs.overrides import Override
    from oumi.core.recipes import resolve_config

    overrides = parse_overrides(arguments)
    overrides += [Override(key, str(value), flag) for key, (flag, value) in flags.items() if value is not None]
    if config is None:
        return InferenceConfig.load(None, overrides)
    path = resolve_config(config, "inference")
    if may_train and any(line.startswith("training:") for line in read_text(path).splitlines()):
        return InferenceConfig.load(None, [*overrides, Override("model.model_name", _output_dir(path), "--config")])
    return InferenceConfig.load(path, overrides)


def _output_dir(path: Path) -> str:
    """Returns where a training config leaves its model."""
    from oumi.core.configs import TrainingConfig
    from oumi.core.plan.trainer_kwargs import as_run

    return as_run(TrainingConfig.from_yaml(path)).training.output_dir  # `trainer_kwargs` may set it


def _load(settings: InferenceConfig, needs_template: bool = False) -> ChatModel:
    from oumi.core.configs.model import DTYPES
    from oumi.core.results.chat_model import LoadSettings, load_with_tokenizer, make_answering_model, make_chat_model
    from oumi.core.system.filesystem import expanded

    model = settings.model
    name = str(expanded(model.model_name)) if expanded(model.model_name).exists() else model.model_name
    how = LoadSettings(
        adapter=model.adapter_model,
        tokenizer=model.tokenizer_name,
        revision=model.model_revision,
        dtype=DTYPES[model.torch_dtype_str.lower()],
        attention=model.attn_implementation,
        chat_template=model.chat_template,
    )
    loaded, tokenizer = load_with_tokenizer(name, how)
    if needs_template:
        return make_chat_model(loaded, tokenizer)
    return make_answering_model(loaded, tokenizer, model.model_max_length)


def _answering(settings: InferenceConfig, system: str | None) -> Answering:
    from oumi.core.inspect import digest_of_weights
    from oumi.core.results.answering import Answering

    generation, model = settings.generation, _load(settings)
    decoding = model.decoding(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.sampling_temperature,
        top_p=generation.top_p,
        min_p=generation.min_p,
        frequency_penalty=generation.frequency_penalty,
        presence_penalty=generation.presence_penalty,
        logit_bias=generation.logit_bias,
        num_beams=generation.num_beams,
        stop_tokens=tuple(generation.stop_token_ids or ()),
        stop_strings=tuple(generation.stop_strings or generation.stop or ()),
        keeps_special_tokens=not generation.skip_special_tokens,
    )
    names = [name for name in (settings.model.model_name, settings.model.adapter_model) if name]
    return Answering(
        model=model,
        name=" + ".join(names),
        weights=f"{names} {settings.model.model_revision} {settings.model.tokenizer_name} {digest_of_weights(*names)}",
        decoding=decoding,
        batch_size=generation.batch_size or _BATCH_SIZE,
        seed=generation.seed or 0,
        system=system,
        template_kwargs=settings.model.chat_template_kwargs,
    )


def _show_progress(num_done: int, num_rows: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{num_done} of {num_rows} rows", err=True, nl=False)


def _report(outcome: Outcome, target: Path, seconds: float) -> None:
    """Prints what was answered; raises DataError if rows were not, with their lines."""
    before = f", {outcome.num_done} were answered before" if outcome.num_done else ""
    speed = f", {outcome.num_tokens / max(seconds, 1e-9):,.0f} tokens/s" if outcome.num_answered else ""
    end = "\n" if sys.stderr.isatty() else ""
    typer.echo(f"{end}{outcome.num_answered} rows answered{before}{speed}: {target}", err=True)
    if not outcome.rejected:
        return
    lines = "".join(f"\n  {row}" for row in outcome.rejected[:_MAX_SHOWN])
    num_more = len(outcome.rejected) - _MAX_SHOWN
    more = f"\n  ... and {num_more} more" if num_more > 0 else ""
    raise DataError(f"{len(outcome.rejected)} rows have no answer:{lines}{more}")
