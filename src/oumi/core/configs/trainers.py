# SPDX-License-Identifier: Apache-2.0
"""The trainers that a config may name and their features: the only place that distinguishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oumi.core.configs.base import NamedEnum


@dataclass(frozen=True)
class TrainerSpec:
    """The features of a trainer that the config, the plan and the data depend on."""

    method: str
    """Its method, a name in `core/plan/methods.py`; for trainer OUMI the default of `training.method`."""
    is_built: bool = False
    """Supported by this version."""
    is_native: bool = False
    """Oumi's own loop: flat batches, and sums over the terms of a step."""
    is_trl: bool = False
    """A trainer of TRL."""
    trains_prompts: bool = False
    """Trains every token by default."""
    has_liger: bool = True
    """Supports Liger's kernels."""
    max_rewards: int = 0
    """Most reward functions that it takes."""
    needs_validation: bool = False
    """Requires a validation set."""
    section: str | None = None
    """The section of `training` with arguments of its config class."""


class TrainerType(NamedEnum):
    """The trainer of a run."""

    TRL_SFT = "trl_sft"
    TRL_DPO = "trl_dpo"
    TRL_KTO = "trl_kto"
    TRL_ORPO = "trl_orpo"
    TRL_CPO = "trl_cpo"
    TRL_GRPO = "trl_grpo"
    TRL_GKD = "trl_gkd"
    TRL_GOLD = "trl_gold"
    HF = "hf"
    OUMI = "oumi"
    VERL_GRPO = "verl_grpo"

    @property
    def spec(self) -> TrainerSpec:
        """Returns the features of the trainer."""
        return TRAINERS[self]


TRAINERS: Mapping[TrainerType, TrainerSpec] = {
    TrainerType.OUMI: TrainerSpec("next_token", is_built=True, is_native=True),
    TrainerType.TRL_SFT: TrainerSpec("next_token", is_built=True, is_trl=True, trains_prompts=True),
    TrainerType.HF: TrainerSpec("next_token", is_built=True, trains_prompts=True),
    TrainerType.TRL_DPO: TrainerSpec("dpo", is_built=True, is_trl=True),
    TrainerType.TRL_KTO: TrainerSpec("kto", is_built=True, is_trl=True, has_liger=False),
    TrainerType.TRL_ORPO: TrainerSpec("orpo", is_built=True, is_trl=True),
    TrainerType.TRL_CPO: TrainerSpec("cpo", is_built=True, is_trl=True),
    TrainerType.TRL_GRPO: TrainerSpec("grpo", is_trl=True, max_rewards=1_000, section="grpo"),
    TrainerType.TRL_GKD: TrainerSpec("distillation", is_trl=True, section="gkd"),
    TrainerType.TRL_GOLD: TrainerSpec("distillation", is_trl=True, section="gold"),
    TrainerType.VERL_GRPO: TrainerSpec("grpo", has_liger=False, max_rewards=1, needs_validation=True),
}
"""Features of each trainer; `core/trainers/trainer.py` names the classes."""
