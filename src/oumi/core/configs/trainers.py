# SPDX-License-Identifier: Apache-2.0
"""The trainers that a config may name, and what each of them can do: the only place where they are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oumi.core.configs.base import NamedEnum


@dataclass(frozen=True)
class TrainerSpec:
    """What a trainer can do, as far as the config, the plan and the data must know it."""

    method: str
    """What it learns from rows, a name of `core/plan/methods.py`; our own trainer lets `training.method` choose."""
    is_built: bool = False
    is_native: bool = False
    """Our own loop: flat batches, packed rows, streams, images, several processes, every native method."""
    is_trl: bool = False
    trains_prompts: bool = False
    """Trains every token unless the config says which."""
    has_liger: bool = True
    max_rewards: int = 0
    """Reward functions that it takes."""
    needs_validation: bool = False
    section: str | None = None
    """The section of `training` whose keys its config class has, too."""


class TrainerType(NamedEnum):
    """Which trainer carries out the run."""

    TRL_SFT = "trl_sft"
    TRL_DPO = "trl_dpo"
    TRL_KTO = "trl_kto"
    TRL_GRPO = "trl_grpo"
    TRL_GKD = "trl_gkd"
    TRL_GOLD = "trl_gold"
    HF = "hf"
    OUMI = "oumi"
    VERL_GRPO = "verl_grpo"

    @property
    def spec(self) -> TrainerSpec:
        """Returns what the trainer can do."""
        return TRAINERS[self]


TRAINERS: Mapping[TrainerType, TrainerSpec] = {
    TrainerType.OUMI: TrainerSpec("next_token", is_built=True, is_native=True),
    TrainerType.TRL_SFT: TrainerSpec("next_token", is_built=True, is_trl=True, trains_prompts=True),
    TrainerType.HF: TrainerSpec("next_token", is_built=True, trains_prompts=True),
    TrainerType.TRL_DPO: TrainerSpec("dpo", is_trl=True),
    TrainerType.TRL_KTO: TrainerSpec("kto", is_trl=True, has_liger=False),
    TrainerType.TRL_GRPO: TrainerSpec("grpo", is_trl=True, max_rewards=1_000, section="grpo"),
    TrainerType.TRL_GKD: TrainerSpec("distillation", is_trl=True, section="gkd"),
    TrainerType.TRL_GOLD: TrainerSpec("distillation", is_trl=True, section="gold"),
    TrainerType.VERL_GRPO: TrainerSpec("grpo", has_liger=False, max_rewards=1, needs_validation=True),
}
"""Which class carries each of them out stands in `core/trainers/trainer.py`."""
