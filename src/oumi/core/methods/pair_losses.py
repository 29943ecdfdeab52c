# SPDX-License-Identifier: Apache-2.0
"""The losses of a pair of answers that compare the model with a reference: each gives one value a pair.

All have the names and the definitions of TRL, except that `label_smoothing` also acts on `sigmoid` and `sigmoid_norm`.
Shape letter: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

from oumi.core.configs.methods import DpoSettings

_MAX_EXPONENT = 80.0
"""Of the divergences, so that its exponential and the gradient stay finite in float32."""


@dataclass(frozen=True)
class Ratios:
    """What is known of pairs: log-probabilities of answers under the model, less those under the reference."""

    chosen: torch.Tensor
    """[P]"""
    rejected: torch.Tensor
    """[P]"""
    chosen_length: torch.Tensor
    """Trained tokens of the chosen answers [P]."""
    rejected_length: torch.Tensor
    """[P]"""


@dataclass(frozen=True)
class Scored:
    """Pairs, and the scores of their answers under a divergence (f-DPO, Wang et al. 2023, arXiv 2309.16240)."""

    ratios: Ratios
    chosen: torch.Tensor
    """[P]"""
    rejected: torch.Tensor
    """[P]"""
    settings: DpoSettings

    @property
    def logits(self) -> torch.Tensor:
        """Returns beta times the difference of the scores [P]."""
        return self.settings.beta * (self.chosen - self.rejected)

    @property
    def mean_difference(self) -> torch.Tensor:
        """Returns the difference of the scores per token [P]."""
        return self.chosen / self.ratios.chosen_length - self.rejected / self.ratios.rejected_length


def scored(ratios: Ratios, settings: DpoSettings) -> Scored:
    """Returns pairs with the scores that `f_divergence_type` gives to their answers."""
    score = score_function(settings)
    return Scored(ratios, score(ratios.chosen), score(ratios.rejected), settings)


def score_function(settings: DpoSettings) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the derivative of the divergence's generator at the exponential of a log-ratio."""
    kind, alpha = settings.f_divergence_type, settings.f_alpha_divergence_coef
    if kind == "forward_kl":
        return lambda ratio: 1 - torch.exp((-ratio).clamp(max=_MAX_EXPONENT))
    if kind == "js_divergence":
        return lambda ratio: math.log(2) + F.logsigmoid(ratio)
    # At 1, the alpha-divergence is the reverse one.
    if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return lambda ratio: torch.expm1(((alpha - 1) * ratio).clamp(max=_MAX_EXPONENT)) / (alpha - 1)
    return lambda ratio: ratio


def smoothed(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Returns the logistic loss where a share of the pairs may have its answers swapped (cDPO, Mitchell 2023)."""
    loss = -F.logsigmoid(logits)
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * F.logsigmoid(-logits)


def _sigmoid(pairs: Scored) -> torch.Tensor:
    return smoothed(pairs.logits, pairs.settings.label_smoothing)


def _sigmoid_norm(pairs: Scored) -> torch.Tensor:
    return smoothed(pairs.settings.beta * pairs.mean_difference, pairs.settings.label_smoothing)


def _hinge(pairs: Scored) -> torch.Tensor:
    """SLiC (Zhao et al. 2023, arXiv 2305.10425) on the scores of DPO, as in RSO (arXiv 2309.06657)."""
    return torch.relu(1 - pairs.logits)


def _ipo(pairs: Scored) -> torch.Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036), equation 17, on means per token, as its authors computed it."""
    return (pairs.mean_difference - 1 / (2 * pairs.settings.beta)) ** 2


def _robust(pairs: Scored) -> torch.Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): unbiased if a share of the pairs is swapped."""
    swapped = pairs.settings.label_smoothing
    right, wrong = -F.logsigmoid(pairs.logits), -F.logsigmoid(-pairs.logits)
    return ((1 - swapped) * right - swapped * wrong) / (1 - 2 * swapped)


def _exo_pair(pairs: Scored) -> torch.Tensor:
    """EXO (Ji et al. 2024, arXiv 2402.00856), equation 16: the reverse divergence from the smoothed preference."""
    smoothing, logits = pairs.settings.label_smoothing, pairs.logits
    chosen = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-smoothing))
    return chosen + torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(smoothing))


def _nca_pair(pairs: Scored) -> torch.Tensor:
    """NCA (Chen et al. 2024, arXiv 2402.05369) for two answers."""
    chosen, rejected = (pairs.settings.beta * ratio for ratio in (pairs.ratios.chosen, pairs.ratios.rejected))
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco_pair(pairs: Scored) -> torch.Tensor:
    """BCO (Jung et al. 2024, arXiv 2404.04656) without its shift of the rewards, as TRL has it for pairs."""
    chosen, rejected = (pairs.settings.beta * ratio for ratio in (pairs.ratios.chosen, pairs.ratios.rejected))
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def _sppo_hard(pairs: Scored) -> torch.Tensor:
    """SPPO (Wu et al. 2024, arXiv 2405.00675), equation 4.7, where the chosen answer always wins."""
    half = 0.5 / pairs.settings.beta
    return (pairs.ratios.chosen - half) ** 2 + (pairs.ratios.rejected + half) ** 2


def _apo_zero(pairs: Scored) -> torch.Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266), equation 7: for answers better than the model's own."""
    chosen, rejected = (pairs.settings.beta * ratio for ratio in (pairs.ratios.chosen, pairs.ratios.rejected))
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(pairs: Scored) -> torch.Tensor:
    """APO-down, equation 8 of the same paper: for answers worse than the model's own."""
    beta, ratios = pairs.settings.beta, pairs.ratios
    return torch.sigmoid(beta * ratios.chosen) + 1 - torch.sigmoid(beta * (ratios.chosen - ratios.rejected))


def _discopop(pairs: Scored) -> torch.Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv 2406.08414), equation 5: logistic and exponential loss, blended."""
    scaled = pairs.logits / pairs.settings.discopop_tau
    # Of a pair that is far off, the exponential alone overflows; times its share it is zero.
    exponential = torch.exp(F.logsigmoid(scaled) - pairs.logits)
    return -F.logsigmoid(pairs.logits) * torch.sigmoid(-scaled) + exponential


# `sft`, whose mean is over tokens, is not among them.
PAIR_LOSSES: Mapping[str, Callable[[Scored], torch.Tensor]] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
