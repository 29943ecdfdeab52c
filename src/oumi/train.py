# SPDX-License-Identifier: Apache-2.0
"""The documented import path `oumi.train`: the function `train`, and a module that can be called like it.

`from oumi import train` returns the function. Once this module is imported, Python replaces that name by the module,
so the module has to be callable, too.
"""

import sys
from types import ModuleType
from typing import Any

from oumi.core.train import TrainResult, train

__all__ = ["TrainResult", "train"]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **named: Any) -> TrainResult:
        return train(*args, **named)


sys.modules[__name__].__class__ = _CallableModule
