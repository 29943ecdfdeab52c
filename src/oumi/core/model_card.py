# SPDX-License-Identifier: Apache-2.0
"""The model card of a run: its data, settings and metrics as README.md, as the Hub shows it beside a model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from oumi.core.checkpoint.best import outcome
from oumi.core.configs.loading import dump
from oumi.core.log import logger
from oumi.core.plan.custom import custom_model
from oumi.core.plan.parts import Plan
from oumi.core.recipes import is_packaged
from oumi.core.run import Progress
from oumi.core.system.environment import installed_packages
from oumi.core.system.filesystem import expanded

FILE, OTHER_FILE = "README.md", "MODEL_CARD.md"
"""The card, and its name where the user has a README of their own."""
_MARK = "<!-- Written by Oumi, and again at the next run into this directory unless this line is removed. -->"
_PACKAGES = ("oumi", "torch", "transformers", "peft", "trl")
_METHODS = {"next_token": "next-token prediction", "dpo": "direct preference optimization"}
_OF_THE_MACHINE = ("runtime", "per_second")
"""Endings of metrics that are not the same in the next run."""


def write_card(run: Progress, ledgers: Mapping[str, Sequence[Any]]) -> None:
    """Writes the card of a run into its output directory, if the run saves its model; never over a file of the user.

    Args:
        run: The run after its last step.
        ledgers: The ledger of each data set, by split.
    """
    directory = run.plan.output_dir
    if not run.plan.checkpoints.final_model:
        return
    path = directory / FILE
    if _is_of_user(path):
        logger.info("%s is not of a run, so the model card is %s", path, OTHER_FILE)
        path = directory / OTHER_FILE
    if _is_of_user(path):
        logger.warning("%s is not of a run, either, so no model card is written", path)
        return
    path.write_text(card(run, ledgers), encoding="utf-8")


def _is_of_user(path: Path) -> bool:
    """Returns True if a path is taken, by anything but the card of a run."""
    return path.exists() and (path.is_dir() or _MARK not in path.read_text(encoding="utf-8", errors="replace"))


def card(run: Progress, ledgers: Mapping[str, Sequence[Any]]) -> str:
    """Returns the text of the card. The same run gives the same text: it has no dates, and nothing of the machine."""
    plan = run.plan
    sections = {
        "Data": _data(ledgers),
        "Training": _training(run),
        "Metrics": _metrics(run),
        "Use": _use(plan),
        "Versions": _versions(plan),
    }
    title = plan.run_name or plan.output_dir.resolve().name
    kind = "An adapter of" if _is_adapter(plan) else "Trained from"
    head = f"# {title}\n\n{_MARK}\n\n{kind} `{_shown(plan.model.name)}` by {_method(plan)}, with Oumi.\n"
    text = "\n".join(f"\n## {name}\n\n" + "\n".join(lines) for name, lines in sections.items() if lines)
    return f"---\n{yaml.safe_dump(_metadata(plan), sort_keys=False)}---\n\n{head}{text}\n"


def _metadata(plan: Plan) -> dict[str, Any]:
    """Returns what the Hub reads of a card; a directory of this machine is no model of the Hub."""
    is_custom = custom_model(plan.model.name) is not None
    is_local = is_custom or is_packaged(plan.model.name) or expanded(plan.model.name).is_dir()
    base = {} if is_local else {"base_model": plan.model.name}
    library = "peft" if _is_adapter(plan) else "oumi" if is_custom else "transformers"
    return {**base, "library_name": library, "tags": ["oumi", plan.method.name.replace("_", "-")]}


def _method(plan: Plan) -> str:
    settings = "".join(f", {name} {value}" for name, value in plan.method.settings.items())
    lora = f", LoRA of rank {plan.lora.settings['r']}" if plan.lora is not None else ""
    return f"{_METHODS.get(plan.method.name, plan.method.name)}{settings}{lora} (trainer `{plan.trainer}`)"


def _data(ledgers: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    yield "| Split | Data set | Rows read | used whole | truncated | rejected | Trained tokens |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for split, of_split in ledgers.items():
        for ledger in of_split:
            counts = ledger.counts
            numbers = (counts.read, counts.trained, counts.truncated, counts.rejected, counts.num_target_tokens)
            yield f"| {split} | `{_shown(ledger.dataset)}` | " + " | ".join(f"{number:,}" for number in numbers) + " |"


def _training(run: Progress) -> Iterator[str]:
    plan, state = run.plan, run.state
    steps = plan.steps
    warmup = plan.schedule.num_warmup_steps(plan.num_steps)
    yield f"- steps: {state.step:,} of {plan.num_steps:,}, {steps.rows_per_step} rows each, {state.epoch:.3g} epochs"
    yield f"- tokens: {state.num_tokens:,}, of which {state.num_targets:,} were trained"
    yield (
        f"- optimizer: {plan.optimizer.name}, learning rate {plan.optimizer.learning_rate:g}, schedule "
        f"{plan.schedule.name} with {warmup} steps of warmup, weight decay {plan.optimizer.weight_decay:g}"
    )
    yield f"- precision: {plan.precision.reason}"
    yield f"- seeds: {plan.seed} of weights and dropout, {plan.data.seed} of the order of rows"
    digest = hashlib.sha256(dump(plan.config, hides_secrets=True).encode()).hexdigest()
    yield f"- config: `config.yaml` beside this file, with all defaults of digest `{digest[:16]}`"
    if revision := plan.model.revision:
        yield f"- revision of the model that was trained: `{revision}`"
    if text := outcome(run):
        yield f"- {text}"


def _metrics(run: Progress) -> Iterator[str]:
    """Yields a table of the last values of what was measured."""
    values = {
        name: value
        for name, value in sorted(run.metrics.items())
        if (name == "loss" or name.startswith(("eval_", "best_"))) and not name.endswith(_OF_THE_MACHINE)
    }
    if not values:
        return
    yield "| Metric | Last value |"
    yield "|---|---:|"
    for name, value in values.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if math.isfinite(value) else "not a number"
        yield f"| {'training loss of the last step' if name == 'loss' else name} | {text} |"


def _use(plan: Plan) -> Iterator[str]:
    if (model_class := custom_model(plan.model.name)) is not None:
        yield f"`{model_class.__name__}.from_pretrained('path/of/this/directory')`, where the class is imported."
        return
    yield "```python"
    if _is_adapter(plan):
        yield "from peft import AutoPeftModelForCausalLM as AutoModel"
        yield "from transformers import AutoTokenizer"
    else:
        name = "AutoModelForImageTextToText" if plan.model.sees_images else "AutoModelForCausalLM"
        yield f"from transformers import {name} as AutoModel, AutoTokenizer"
    yield ""
    yield 'model = AutoModel.from_pretrained("path/of/this/directory")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("path/of/this/directory")'
    yield "```"
    if not plan.model.sees_images:
        yield ""
        yield "Or `oumi chat path/of/this/directory`."


def _versions(plan: Plan) -> Iterator[str]:
    packages = installed_packages()
    names = [name for name in _PACKAGES if name in packages and (name != "trl" or plan.trainer.startswith("TRL"))]
    yield ", ".join(f"{name} {packages[name]}" for name in names)


def _is_adapter(plan: Plan) -> bool:
    """Returns True if the directory holds an adapter."""
    if plan.lora is None:
        return plan.model.adapter is not None
    return plan.save_mode != "MERGED"


def _shown(name: str) -> str:
    """Returns a name without the directories of this machine."""
    return Path(name).name if Path(name).is_absolute() else name
