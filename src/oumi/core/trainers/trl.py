# SPDX-License-Identifier: Apache-2.0
"""An adapter for the trainers of TRL and transformers: their loop with our rows, order of rows and callbacks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, get_type_hints

import torch
from accelerate import ParallelismConfig
from transformers import PrinterCallback

from oumi.core.callbacks.guards import SignalGuard, save_if_possible, stopped_early
from oumi.core.checkpoint.state import read_progress
from oumi.core.configs.base import types_in
from oumi.core.configs.tree import scalar
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.world import World, seed_everything
from oumi.core.errors import ConfigError, NotFiniteError, OumiError, did_you_mean
from oumi.core.log import logger
from oumi.core.models.acceleration.liger import check_liger
from oumi.core.models.adapters import below_adapter, is_adapted, saved_size
from oumi.core.models.attention.rope import separate_rows
from oumi.core.models.build import build_model, load_weights, router_loss_coefficient
from oumi.core.monitoring.build import build_efficiency, build_reporting, write_model_summary
from oumi.core.plan.disk import with_saved_size
from oumi.core.plan.parts import Plan
from oumi.core.plan.preference_kwargs import computes_reference_before
from oumi.core.run import Callback, Callbacks, Progress
from oumi.core.trainers.accelerate_state import contain_accelerate
from oumi.core.trainers.export import Exporter
from oumi.core.trainers.resume import ResumePoint, checkpoint_to_restore
from oumi.core.trainers.trl_adapter import Seams, adapted
from oumi.core.trainers.trl_bridge import AlreadyTrainedError, Bridge, EvaluationStoppedError
from oumi.core.trainers.trl_inputs import ModelInputs, average_over_step
from oumi.core.trainers.trl_methods import METHODS, NEWER_NAMES, arguments
from oumi.core.trainers.trl_preferences import ADAPTERS
from oumi.core.trainers.trl_rows import Join, row_numbers


class TrlTrainer:
    """Runs a trainer of TRL or transformers with the settings of the plan."""

    def __init__(self, run: Progress, inner: Any, bridge: Bridge, exporter: Exporter, checkpoint: Path | None) -> None:
        self.run = run
        self.inner = inner
        self._bridge = bridge
        self._exporter = exporter
        self._checkpoint = checkpoint

    @classmethod
    def build(cls, plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> TrlTrainer:
        """Loads the model, and creates the other trainer with it and our rows.

        Raises:
            ConfigError: The other trainer rejects an argument, or lacks one of `training.trainer_kwargs`.
        """
        restore = contain_accelerate(world, plan.accelerate.deepspeed is not None)
        try:
            trainer = cls._build(plan, world, rows, start)
        except BaseException:
            restore()
            raise
        trainer.run.callbacks.all.append(_Ending(restore))
        return trainer

    @classmethod
    def _build(cls, plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> TrlTrainer:
        seed_everything(plan.seed, plan.deterministic, plan.device)
        method = METHODS[plan.trainer]
        with _translated_errors(plan):
            settings = _checked(_load(method.config), {**arguments(plan), **_replicas(plan)})
        if start.checkpoint is not None:
            _check_kind(plan, start.checkpoint)
        model = _build_model(plan, world, rows, start)
        exporter = Exporter(plan, model, rows.preprocessor)
        _check_blocks(plan, model)
        _check_head(plan, exporter.shapes)
        rows.check_vocabulary(exporter.shapes)
        write_model_summary(plan, model)
        plan = with_saved_size(plan, saved_size(exporter.shapes, plan.save_mode))
        if plan.speed.liger:
            check_liger(model)
        reference = _reference(plan, model)
        inputs = ModelInputs.build(plan, model)
        join = Join(rows.preprocessor, world.size)
        source = rows.loader(plan, world.rank, join)
        run = Progress(plan=plan, callbacks=Callbacks([SignalGuard()]))
        efficiency = None
        if world.is_main:
            # On a GPU, TRL also computes the logits of trained positions only.
            has_full_head = plan.trainer == "HF" or plan.device == "cpu"
            efficiency = build_efficiency(plan, exporter.shapes, has_full_head)
            run.callbacks.all.append(build_reporting(plan, efficiency))
        if start.checkpoint is not None:
            run.state, position = read_progress(start.checkpoint, start.step)
            source.restore(position)
        bridge = Bridge(run, world, efficiency, source, start.facts(plan, rows.fingerprint))
        seams = Seams(plan, bridge, exporter, rows, inputs, join)
        trainer_class = adapted(_load(method.trainer), ADAPTERS[method.form], seams)
        with _translated_errors(plan), _dtype_kept(plan, model):
            trainer = trainer_class(
                model=model,
                args=settings,
                train_dataset=row_numbers(rows.train),
                eval_dataset=row_numbers(rows.validation) if len(rows.validation) else None,
                processing_class=rows.preprocessor.tokenizer,
                callbacks=[bridge],
                **reference,
            )
            _drop_copied_adapter(plan, trainer)
            # Created now, so that an unknown optimizer or a missing package is reported before training.
            trainer.create_optimizer()
        if plan.method.spec.is_per_token:
            average_over_step(trainer, has_own_loss=plan.trainer != "HF")
        if world.rank:  # otherwise all ranks would draw the same dropout masks
            torch.manual_seed(plan.seed + world.rank)
        _warn_of_router_loss(model)
        trainer.remove_callback(PrinterCallback)  # our console shows the steps
        return cls(run, trainer, bridge, exporter, start.checkpoint)

    def train(self) -> None:
        """Runs every step of the plan; raises PreemptedError if the run was stopped before the last one."""
        run = self.run
        try:
            self.inner.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        except AlreadyTrainedError:
            run.callbacks.train_end(run)
        except EvaluationStoppedError:
            run.stop_requested = run.state.awaits_evaluation = True
            self._save_last_step()
        except NotFiniteError:
            save_if_possible(self._save_last_step)
            raise
        finally:
            run.callbacks.close()
        if run.stop_requested and not run.is_complete:
            raise stopped_early(run)

    def _save_last_step(self) -> None:
        """Writes the checkpoint of the last complete step, unless there is one."""
        if self.inner.state.global_step > self._bridge.saved_step:
            self.inner._save_checkpoint(self.inner.model, None)
            self._bridge.on_save(self.inner.args, self.inner.state, self.inner.control)

    def save(self, directory: Path) -> None:
        """Writes the trained model and its tokenizer, on the main rank."""
        if (checkpoint := checkpoint_to_restore(self.run)) is not None:
            load_weights(self._exporter.shapes, self.run.plan, checkpoint)
        self._exporter.publish(directory, self._bridge.world)


def _build_model(plan: Plan, world: World, rows: TrainingData, start: ResumePoint) -> Any:
    # The other trainer moves a model to its device, but not one with quantized weights.
    moves = plan.model.quantization is None or plan.accelerate.fsdp is not None
    begins_with_inputs = plan.lora is not None and plan.lora.begins_with_inputs
    return build_model(
        plan,
        torch.device("cpu") if moves and not begins_with_inputs else world.device,
        # It has the ranks of the layers; the other trainer reads the weights again.
        start.checkpoint if begins_with_inputs else None,
        documents=rows.first_documents(plan),
    )


def _reference(plan: Plan, model: Any) -> dict[str, Any]:
    """Returns the argument for a copy of the model as it is before training, nothing where it is not needed.

    TRL would load the model again by its name, which loses what the config changes in it. An adapter that this run
    continues is copied by TRL; a new one is disabled instead.
    """
    is_computed_before = computes_reference_before(plan.config.training)
    if not METHODS[plan.trainer].has_reference or is_adapted(model) or is_computed_before:
        return {}
    copy = deepcopy(model).requires_grad_(False)
    separate_rows(copy)
    return {"ref_model": copy}


def _drop_copied_adapter(plan: Plan, trainer: Any) -> None:
    """Deletes TRL's copy of a new adapter, without which it disables the adapter to compute the reference."""
    if is_adapted(trainer.model) and _COPY in trainer.model.peft_config and not plan.method.copies_reference:
        trainer.model.delete_adapter(_COPY)


_COPY = "ref"
"""Name of the adapter in which TRL keeps the one that a run began with."""


class _Ending(Callback):
    """Restores the process once nothing of the run is under way."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def wait(self) -> None:
        self._restore()


def _replicas(plan: Plan) -> dict[str, ParallelismConfig]:
    """Returns the argument for several copies of a divided model, nothing for one."""
    num_replicas = plan.accelerate.num_replicas
    if num_replicas == 1:
        return {}
    num_shards = plan.steps.world_size // num_replicas
    return {"parallelism_config": ParallelismConfig(dp_replicate_size=num_replicas, dp_shard_size=num_shards)}


def _check_kind(plan: Plan, checkpoint: Path) -> None:
    """Raises ConfigError if a checkpoint has its training state in another form than the run reads."""
    settings = plan.accelerate
    section = "fsdp" if settings.fsdp is not None else "deepspeed" if settings.deepspeed is not None else None
    forms = {"fsdp": "pytorch_model_fsdp*", "deepspeed": "global_step*"}
    saved = next((name for name, pattern in forms.items() if any(checkpoint.glob(pattern))), None)
    if saved != section:
        names = {
            None: "each process has the whole model",
            "fsdp": "fsdp divides it",
            "deepspeed": "deepspeed divides it",
        }
        raise ConfigError(
            f"{checkpoint} is of a run in which {names[saved]}, and {plan.trainer} resumes it only so; in this one "
            f"{names[section]}. Or start a new run with model.model_name set to the checkpoint"
        )


def _check_blocks(plan: Plan, model: torch.nn.Module) -> None:
    """Raises ConfigError for a class of blocks that the model does not have."""
    classes = {type(module).__name__ for module in model.modules()}
    for name in (plan.accelerate.fsdp or {}).get("transformer_layer_cls_to_wrap", []):
        if name not in classes:
            raise ConfigError(
                f"fsdp.transformer_layer_cls: the model has no module of class {name}{did_you_mean(name, classes)}"
            )


def _check_head(plan: Plan, model: Any) -> None:
    """Raises ConfigError if TRL would multiply by the weight of the head, and so pass over trained rows of it."""
    head = below_adapter(model).get_output_embeddings()
    if plan.trainer != "HF" and type(head).__name__ == "TrainableTokensWrapper":
        raise ConfigError(
            f"peft.lora_trainable_token_indices: the head of this model is its embedding, and {plan.trainer} would "
            "pass over the trained rows of it; use trainer OUMI or HF, or peft.lora_modules_to_save for all rows"
        )


def _warn_of_router_loss(model: Any) -> None:
    if coefficient := router_loss_coefficient(model):  # once the trainer is created, since it may set it
        logger.warning(
            "the loss includes the router's auxiliary loss, which balances experts, times router_aux_loss_coef %g",
            coefficient,
        )


@contextmanager
def _dtype_kept(plan: Plan, model: torch.nn.Module) -> Iterator[None]:
    """Keeps the adapter on quantized weights in float32 if the model is: TRL turns it into bfloat16."""
    kept = {p: p.data for p in model.parameters() if p.requires_grad} if plan.model.dtype == "float32" else {}
    yield
    for parameter, data in kept.items():
        parameter.data = data


@contextmanager
def _translated_errors(plan: Plan) -> Iterator[None]:
    """Converts errors of TRL and transformers about their arguments to ConfigError, with the original message."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if isinstance(error, OumiError):  # our ConfigError is a ValueError, and already has its key
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"training: {plan.trainer} rejects the config: {reason}") from error


def _load(path: str) -> Any:
    """Returns the class of a path such as `trl:SFTTrainer`; raises ConfigError if the installed version lacks it."""
    module, _, name = path.partition(":")
    # TRL warns at the import of each experimental trainer.
    silence, before = "TRL_EXPERIMENTAL_SILENCE", os.environ.get("TRL_EXPERIMENTAL_SILENCE")
    os.environ[silence] = "1"
    try:
        return getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        library = module.partition(".")[0]
        raise ConfigError(f"training.trainer_type: {library} {version(library)} has no {module}.{name}") from error
    finally:
        if before is None:
            del os.environ[silence]
        else:
            os.environ[silence] = before


def _checked(config_class: Any, values: dict[str, Any]) -> Any:
    """Returns the config of another trainer; raises ConfigError for an argument that it does not have."""
    # The names of arguments depend on the installed version of transformers.
    fields = {field.name for field in dataclasses.fields(config_class)}
    newer = {old: new for old, new in NEWER_NAMES.items() if new in fields}
    values = {newer.get(name, name): value for name, value in values.items()}
    types = get_type_hints(config_class)
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(
                f"training.trainer_kwargs.{name}: {config_class.__name__} has no such argument"
                f"{did_you_mean(name, fields)}"
            )
        # Text of an environment variable gets the type of its field, which the config class does not check.
        expected = set(types_in(types[name]))
        if isinstance(value, str) and expected <= {int, float, bool, NoneType}:
            values[name] = scalar(value)
            if isinstance(values[name], str):
                wanted = " or ".join(sorted(kind.__name__ for kind in expected - {NoneType}))
                raise ConfigError(f"training.trainer_kwargs.{name}: got {value!r}, expected {wanted}")
    return config_class(**values)
