# SPDX-License-Identifier: Apache-2.0
"""Parts by name, imported on first use."""

from __future__ import annotations

import sys

import pytest

from oumi.core.errors import ConfigError
from oumi.core.registry import Registry


def test_a_part_is_imported_on_first_use_in_any_case() -> None:
    sys.modules.pop("colorsys", None)
    table: Registry[object] = Registry("part", {"Rgb": "colorsys:rgb_to_hsv"})
    assert "colorsys" not in sys.modules
    assert table.get("RGB") is table.get("rgb") is sys.modules["colorsys"].rgb_to_hsv


def test_a_part_is_added_by_a_decorator_and_a_duplicate_name_is_refused() -> None:
    table: Registry[type] = Registry("part")

    @table.register("mine")
    class Mine: ...

    assert table.get("Mine") is Mine
    with pytest.raises(ConfigError, match="part 'MINE' is registered already"):
        table.register("MINE")


def test_a_miss_names_the_nearest_part_or_all_of_them() -> None:
    table: Registry[object] = Registry("part", {"alpha": "a:a", "beta": "b:b"})
    with pytest.raises(ConfigError, match="unknown part 'alhpa', did you mean 'alpha'"):
        table.get("alhpa")
    with pytest.raises(ConfigError, match="unknown part 'zzz'; known: alpha, beta"):
        table.get("zzz")
