# SPDX-License-Identifier: Apache-2.0
"""`oumi eval`: measures a model on held-out rows, or on the tasks of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oumi.core.errors import ConfigError

if TYPE_CHECKING:
    from oumi.core.configs import TrainingConfig

_BATCH_SIZE = 8


def evaluate(
    model_dir: Annotated[Path | None, typer.Argument(help="Directory of a model, an adapter or a checkpoint.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="File of chats, texts, completions or pairs.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Training config: its model and its validation set.")
    ] = None,
    exact_match: Annotated[
        bool, typer.Option("--exact-match", help="Also answer each row, and compare with its last turn.")
    ] = False,
    reference: Annotated[str | None, typer.Option(help="Model before the training, for pairs.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = 256,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-eval, such as arc_easy,hellaswag.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question of a task.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File of the results (JSON).")] = None,
) -> None:
    """Measure a model: `oumi eval MODEL_DIR --data FILE`, `oumi eval -c train.yaml`, or `--tasks` of lm-eval."""
    if model_dir is None and config is None:
        raise ConfigError("expected the directory of a model, or -c with the config that trained it")
    if tasks is None and (limit is not None or num_fewshot is not None):
        raise ConfigError("--limit and --num-fewshot are for --tasks")
    if tasks is not None and (data is not None or exact_match or reference is not None):
        raise ConfigError("--tasks brings its own rows; leave --data, --exact-match and --reference out")
    training = _training(config)
    model = str(model_dir if model_dir is not None else training.training.output_dir)  # type: ignore[union-attr]
    if tasks is not None:
        from oumi.core.results.lm_eval import run_tasks

        results = run_tasks(model, tasks.split(","), limit, num_fewshot)
    else:
        results = _measured(model, data, training, exact_match, reference, max_new_tokens)
    if output is not None:
        from oumi.core.system.filesystem import storage_errors

        with storage_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    width = max(map(len, results["metrics"]))
    for name, value in results["metrics"].items():
        typer.echo(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value:.4f}")


def _training(config: str | None) -> TrainingConfig | None:
    if config is None:
        return None
    from oumi.core.configs import TrainingConfig
    from oumi.core.plan.trainer_kwargs import as_run
    from oumi.core.recipes import resolve_config

    return as_run(TrainingConfig.from_yaml(resolve_config(config)))


def _measured(
    model: str,
    data: Path | None,
    training: TrainingConfig | None,
    exact_match: bool,
    reference: str | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Returns the metrics of a model on a file, or on the validation set of a config."""
    from oumi.core.results.chat_model import check_model_dir, load_chat_model
    from oumi.core.results.held_out import exact_match as measure_answers
    from oumi.core.results.held_out import held_out_config, measure, read_held_out, validation_config, with_targets_of
    from oumi.core.system.filesystem import expanded

    check_model_dir(expanded(model))
    if data is not None:
        if not expanded(str(data)).exists():
            raise ConfigError(f"--data: no file {data}")
        config = held_out_config(model, expanded(str(data)), _BATCH_SIZE)
        if training is not None:  # which tokens count is that of the training
            config.data.train = with_targets_of(config.data.train, training)
    elif training is not None:
        config = validation_config(training, model)
    else:
        raise ConfigError("nothing to evaluate on: name a file with --data, tasks with --tasks, or a config with -c")
    rows = read_held_out(config, "" if data is not None else "data.validation")
    if rows.holds_pairs and exact_match:
        raise ConfigError("--exact-match: pairs have no reference answer")
    if reference is not None and not rows.holds_pairs:
        raise ConfigError("--reference is for pairs")
    metrics = measure(rows, reference)
    if exact_match:
        metrics |= measure_answers(rows, load_chat_model(model), max_new_tokens, _BATCH_SIZE)
    return {"model": model, "metrics": metrics, "data": [ledger.to_dict() for ledger in rows.data.ledgers["train"]]}
