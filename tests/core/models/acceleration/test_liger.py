# SPDX-License-Identifier: Apache-2.0
"""Liger's kernels are asked for by name, and what they need is told; their numbers are tested on a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from oumi.core.errors import ConfigError
from oumi.core.models.acceleration.liger import check_liger
from tests.tiny import tiny_llama


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="Liger is installed")
def test_a_missing_package_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"enable_liger_kernel: needs: pip install 'oumi\[gpu\]'"):
        check_liger(tiny_llama())
