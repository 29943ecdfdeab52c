# SPDX-License-Identifier: Apache-2.0
"""The data sets that ship, by name: the class of each, and its arguments where they are not those of the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """A row of the table."""

    part: str
    """`module:class`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the name says to the class; a config may say otherwise."""
    hub_name: str | None = None
    """Id on the Hub, if it is not the name itself."""
    is_script: bool = False
    """On the Hub stands a script, which `datasets` no longer runs."""


NAMES: dict[str, Named] = {
    "text_sft": Named("oumi.datasets.sft.text:TextSftDataset"),
    "text_sft_jsonl": Named("oumi.datasets.sft.text:TextSftDataset"),
    "yahma/alpaca-cleaned": Named("oumi.datasets.sft.alpaca:AlpacaDataset"),
    "tatsu-lab/alpaca": Named("oumi.datasets.sft.alpaca:AlpacaDataset"),
    "oumi/quickstart": Named("oumi.datasets.sft.quickstart:QuickstartDataset"),
}
