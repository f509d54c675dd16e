# SPDX-License-Identifier: Apache-2.0
"""Fast, exact recurrent sequence kernels for PyTorch, with a CPU as a first-class backend."""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = ("errors", "models", "nn", "ops", "reference", "testing", "train")

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    """Import the submodules on first use, so that ``import seqkern`` stays light."""
    if name in _SUBMODULES:
        return importlib.import_module(f"seqkern.{name}")
    raise AttributeError(f"module 'seqkern' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
